"""EC2's calls, where moto's answer is not EC2's. Everything else is moto's.

Each method stands for one call of the API and says in a comment what EC2 does; `tests/sandbox/test_ec2_*` hold them to
it.
"""

from __future__ import annotations

import copy
import uuid
from typing import Any

import moto.ec2.urls
import moto.ec2.utils
from moto.core.responses import ActionResult, EmptyResult
from moto.core.types import Base64EncodedString
from moto.core.utils import utcnow
from moto.ec2.exceptions import EC2ClientError, OperationNotPermitted4
from moto.ec2.models.instances import Instance
from moto.ec2.responses import EC2Response

from gpuops.sandbox import images, networks, places, refusals
from gpuops.sandbox.hypervisor import Hypervisor
from gpuops.sandbox.instances import Instances
from gpuops.sandbox.networks import Networks
from gpuops.sandbox.offerings import Offerings
from gpuops.sandbox.tokens import ClientTokens


def install(instances: Instances, hypervisor: Hypervisor) -> None:
    """Let moto's server answer EC2's calls with `Ec2`."""
    images.install()
    networks.install()
    places.install()
    refusals.install()
    # moto raises NotImplementedError for this filter of DescribeInstances.
    moto.ec2.utils.filter_dict_attribute_mapping["client-token"] = "client_token"
    # moto makes a response object for each request, without arguments.
    Ec2.instances = instances
    Ec2.hypervisor = hypervisor
    Ec2.tokens = ClientTokens()
    moto.ec2.urls.url_paths["{0}/"] = Ec2.dispatch


class Ec2(Networks, Offerings, EC2Response):
    instances: Instances
    hypervisor: Hypervisor
    tokens: ClientTokens

    # moto answers "pending" to RunInstances, whatever the state: wrong for a token that comes again.
    RESPONSE_KEY_PATH_TO_TRANSFORMER = {  # noqa: RUF012
        path: transform
        for path, transform in EC2Response.RESPONSE_KEY_PATH_TO_TRANSFORMER.items()
        if path != "RunInstances.Reservation.Instances.Instance.State"
    }

    def run_instances(self) -> ActionResult:
        # A request sent again with its token gets the reservation it made, in its present state; that comes before all
        # checks, as the image may be gone by now. A dry run spends no token.
        request = copy.deepcopy(self.params)
        request.setdefault("ClientToken", str(uuid.uuid4()))
        if not request.get("DryRun") and (known := self.tokens.reservation(request, self.ec2_backend)):
            return ActionResult(known)
        refusals.refuse_launch(request, self.ec2_backend)
        networks.place_launch(self.params, self.ec2_backend)
        result = super().run_instances()
        reservation: Any = result.result
        for instance in reservation.instances:
            networks.settle(instance, self.params)
            self.instances.launched(instance)
        self.tokens.remember(request, self.ec2_backend, reservation)
        return result

    def start_instances(self) -> ActionResult:
        # An instance that runs is left alone, and CurrentState is the state that it is in. A dry run looks for it too.
        named = self._named_instances()
        self.error_on_dryrun()
        return self._changed("StartingInstances", [(i, self.instances.start(i)) for i in named])

    def stop_instances(self) -> ActionResult:
        named = self._named_instances()
        self.error_on_dryrun()
        return self._changed("StoppingInstances", [(i, self.instances.stop(i)) for i in named])

    def terminate_instances(self) -> ActionResult:
        named = self._named_instances()
        self.error_on_dryrun()
        for instance in named:
            if instance.disable_api_termination:
                raise OperationNotPermitted4(instance.id)
        return self._changed("TerminatingInstances", [(i, self.instances.terminate(i)) for i in named])

    def reboot_instances(self) -> ActionResult:
        named = self._named_instances()
        self.error_on_dryrun()
        for instance in named:
            self.instances.reboot(instance)
        return EmptyResult()

    def describe_instance_status(self) -> ActionResult:
        # Checks take a while after a start, and a machine whose system is dead is impaired.
        statuses: Any = super().describe_instance_status().result
        return ActionResult(
            {
                "InstanceStatuses": [
                    {
                        "InstanceId": instance.id,
                        "AvailabilityZone": instance.availability_zone,
                        "InstanceState": instance.instance_state,
                        "InstanceStatus": {"Status": self.instances.health(instance)},
                        "SystemStatus": {"Status": self.instances.health(instance).replace("impaired", "ok")},
                    }
                    for instance in statuses["InstanceStatuses"]
                ]
            }
        )

    def modify_instance_attribute(self) -> ActionResult:
        # moto ignores this one in its structured form, {"Value": ...}, and takes only Attribute=..., Value=....
        behavior = self._get_param("InstanceInitiatedShutdownBehavior.Value")
        if behavior is None:
            return super().modify_instance_attribute()
        self.error_on_dryrun()
        self.ec2_backend.modify_instance_attribute(
            self._get_param("InstanceId"), "instance_initiated_shutdown_behavior", behavior
        )
        return EmptyResult()

    def get_console_output(self) -> ActionResult:
        # The machine's own words. `Latest` (not only what was buffered at the last change of state) needs Nitro.
        instance: Instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
        if self._get_param("Latest") and not places.is_nitro(instance.instance_type):
            raise EC2ClientError(
                "UnsupportedOperation",
                "This instance type does not support retrieving the latest console logs. "
                "Supported only on instances built on the Nitro System.",
            )
        result: dict[str, object] = {"InstanceId": instance.id, "Timestamp": utcnow()}
        if console := self.hypervisor.console(instance.id):
            result["Output"] = Base64EncodedString.from_raw_string(console.decode("utf-8", "replace"))
        return ActionResult(result)

    def describe_images(self) -> ActionResult:
        # A search passes over deprecated images; by id they are found.
        ids = self._get_param("ImageIds", [])
        refusals.refuse_image_ids(ids)
        result = super().describe_images()
        found: Any = result.result
        if ids or self._get_param("IncludeDeprecated"):
            return result
        return ActionResult({"Images": [i for i in found["Images"] if not getattr(i, "is_deprecated", False)]})

    def describe_regions(self) -> ActionResult:
        # The regions that the account has, and only with AllRegions the others of its partition too.
        self.error_on_dryrun()
        names = self._get_param("RegionNames", [])
        found = places.regions(every=bool(names or self._get_param("AllRegions")))
        for name in names:
            if name not in {region.name for region in found}:
                raise EC2ClientError("InvalidParameterValue", f"Invalid region provided: {name}")
        return ActionResult({"Regions": [region for region in found if not names or region.name in names]})

    def create_tags(self) -> ActionResult:
        # moto tags an instance that isn't there.
        for resource_id in self._get_param("Resources", []):
            if resource_id.startswith("i-"):
                self.ec2_backend.get_instance(resource_id)
        refusals.refuse_tags(self._get_param("Tags", []))
        return super().create_tags()

    def _named_instances(self) -> list[Instance]:
        named: list[Instance] = self.ec2_backend.get_multi_instances_by_id(self._get_param("InstanceIds", []))
        return named

    def _changed(self, key: str, changes: list[tuple[Instance, Any]]) -> ActionResult:
        return ActionResult(
            {
                key: [
                    {"InstanceId": i.id, "PreviousState": before, "CurrentState": i.instance_state}
                    for i, before in changes
                ]
            }
        )

    def _parse_block_device_mapping(self) -> list[dict[str, Any]]:
        # What the request leaves open, or doesn't mention, is as the image has it. moto makes one of 8 GB instead.
        image = self.ec2_backend.describe_images(ami_ids=[self._get_param("ImageId")])[0]
        asked = {mapping["DeviceName"]: mapping for mapping in self._get_param("BlockDeviceMappings", [])}
        for mapping in copy.deepcopy(image.block_device_mappings):
            ebs = asked.setdefault(mapping["DeviceName"], {"DeviceName": mapping["DeviceName"]}).setdefault("Ebs", {})
            for name, value in mapping["Ebs"].items():
                ebs.setdefault(name, value)
        self.params["BlockDeviceMappings"] = list(asked.values())
        return super()._parse_block_device_mapping()
