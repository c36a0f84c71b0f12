"""EC2 Instance Connect: a public key that a running machine admits for a minute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.exceptions import InvalidInstanceIdError
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance

from gpuops.sandbox.hypervisor import Hypervisor
from gpuops.sandbox.services import ServiceRefusal

_PUBLIC_KEY = re.compile(r"(ssh-ed25519|ssh-rsa) [A-Za-z0-9+/]{60,}=*( .*)?\s*")


class InstanceConnect:
    """The texts are those of the API's own definition (botocore, ec2-instance-connect)."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor

    def answer(self, action: str, request: Mapping[str, Any], region: str) -> Mapping[str, Any]:
        if action != "SendSSHPublicKey":
            raise NotImplementedError
        instance = _find(request, region)
        if instance.state != "running":
            raise ServiceRefusal(
                "EC2InstanceStateInvalidException",
                "Unable to connect because the instance is not in a valid state. Connecting to a stopped or terminated "
                "instance is not supported. If the instance is stopped, start your instance, and try to connect again.",
            )
        if not _PUBLIC_KEY.fullmatch(request["SSHPublicKey"]):
            raise ServiceRefusal("InvalidArgsException", "One of the parameters is not valid.")
        # AWS leaves the key in the instance's metadata and calls that success; whether anything on the machine asks
        # there is the image's business.
        image = instance.ec2_backend.amis.get(instance.image_id)
        if getattr(image, "has_instance_connect", False):
            self._hypervisor.introduce(instance.id, request["InstanceOSUser"], request["SSHPublicKey"], for_s=60.0)
        return {"RequestId": "00000000-0000-0000-0000-000000000000", "Success": True}


def _find(request: Mapping[str, Any], region: str) -> Instance:
    try:
        instance: Instance = ec2_backends[DEFAULT_ACCOUNT_ID][region].get_instance(request["InstanceId"])
    except InvalidInstanceIdError:
        raise ServiceRefusal("EC2InstanceNotFoundException", "The specified instance was not found.") from None
    if request.get("AvailabilityZone") not in (None, instance.availability_zone):
        raise ServiceRefusal("EC2InstanceNotFoundException", "The specified instance was not found.")
    return instance
