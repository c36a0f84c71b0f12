"""What EC2 is asked when a machine is launched: the exact request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from gpuops import host_keys
from gpuops.errors import BadSetting
from gpuops.machine import FORMAT, Offer, Prepared, Wish
from gpuops.providers.aws import images, instances
from gpuops.render import render

_USER_DATA_LIMIT_BYTES = 16384  # EC2's limit, before base64


def prepared(wish: Wish, offer: Offer, image: images.Image, group_id: str, client_key: str) -> Prepared:
    """Everything that a launch needs, with a host key made for it. Raises `BadSetting`."""
    host_key = host_keys.generate()
    return Prepared(
        offer=offer,
        host_key=host_key.public_line,
        request=_build(
            offer,
            root_device=image.root_device,
            group_id=group_id,
            user_data=_user_data(wish, host_key=host_key, client_key=client_key),
            tags=instances.tags(wish, offer, host_key=host_key.public_line, created=datetime.now(timezone.utc)),
        ),
    )


def _user_data(wish: Wish, *, host_key: host_keys.HostKeyPair, client_key: str) -> str:
    """The first boot as cloud-init takes it. Raises `BadSetting` where it is longer than EC2 takes."""
    text = render(
        "first-boot.yaml.j2",
        name=wish.name,
        format=FORMAT,
        deadline_s=max(1, round(wish.max_hours * 3600)),
        poweroff="systemctl poweroff",
        host_private_key=host_key.private_text,
        host_public_key=host_key.public_line,
        authorized_keys=list(dict.fromkeys((client_key, *wish.authorized_keys))),
    )
    if len(text.encode()) > _USER_DATA_LIMIT_BYTES:
        raise BadSetting(
            f"The first-boot data is over EC2's limit of {_USER_DATA_LIMIT_BYTES} bytes.",
            left_behind="Nothing was launched.",
            next_step="Name fewer authorized_keys; `gpuops admit` lets computers in later.",
        )
    return text


def _build(offer: Offer, *, root_device: str, group_id: str, user_data: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """RunInstances' parameters but for the client token, as JSON would have them."""
    labels = [{"Key": key, "Value": value} for key, value in tags.items()]
    disk = {
        "VolumeSize": offer.disk_gb,
        "VolumeType": offer.disk_type,
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    return {
        "ImageId": offer.image_id,
        "InstanceType": offer.type,
        "MinCount": 1,
        "MaxCount": 1,
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": offer.subnet,
                "Groups": [group_id],
                "AssociatePublicIpAddress": True,  # whatever the subnet's own setting, which may be not to
                "DeleteOnTermination": True,
            }
        ],
        "InstanceInitiatedShutdownBehavior": "stop",
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required" if offer.imds_v2 else "optional",
            "HttpPutResponseHopLimit": 1,
        },
        "BlockDeviceMappings": [{"DeviceName": root_device, "Ebs": disk}],
        "TagSpecifications": [{"ResourceType": kind, "Tags": labels} for kind in ("instance", "volume")],
        "UserData": user_data,
    }
