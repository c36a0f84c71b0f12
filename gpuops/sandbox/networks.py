"""The account's networks, where moto's are not EC2's: default VPCs, security groups, what a launch gets of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import (
    EC2ClientError,
    InvalidSecurityGroupNotFoundError,
    InvalidSecurityGroupRuleIdNotFoundError,
)
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance
from moto.ec2.responses import EC2Response

from gpuops.sandbox import places
from gpuops.sandbox.refusals import refuse_tags

_DESCRIPTION = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")


def install() -> None:
    """Let every default VPC have its way out. Call it once, before a region is touched."""
    EC2Backend.create_default_vpc = _with_gateway(EC2Backend.create_default_vpc)  # type: ignore[method-assign, assignment]


def place_launch(request: dict[str, Any], backend: Any) -> None:
    """Write into a RunInstances where it leaves that open: its subnet and its groups. Raises what EC2 answers.

    moto launches without a subnet into "EC2-Classic", which is no more, and without a group into none.
    """
    interfaces: list[dict[str, Any]] = request.get("NetworkInterfaces", [])
    if any("NetworkInterfaceId" in interface for interface in interfaces):
        return
    if interfaces and (request.get("SecurityGroupIds") or request.get("SecurityGroups")):
        raise EC2ClientError(
            "InvalidParameterCombination",
            "Network interfaces and an instance-level security groups may not be specified on the same request",
        )
    place = interfaces[0] if interfaces else request
    if "SubnetId" not in place:
        place["SubnetId"] = _default_subnet(request, backend).id
    subnet = backend.get_subnet(place["SubnetId"])
    key = "Groups" if interfaces else "SecurityGroupIds"
    place[key] = place.get(key, []) + _ids(request.pop("SecurityGroups", ()), subnet.vpc_id, backend)
    if not place[key]:
        place[key] = [backend.get_security_group_from_name("default", subnet.vpc_id).id]
    for group_id in place[key]:
        group = backend.get_security_group_from_id(group_id)
        if group is None:
            raise InvalidSecurityGroupNotFoundError(group_id)
        if group.vpc_id != subnet.vpc_id:
            raise EC2ClientError(
                "InvalidParameter", f"Security group {group_id} and subnet {subnet.id} belong to different networks."
            )


def settle(instance: Instance, request: Mapping[str, Any]) -> None:
    """Finish what moto has made: its groups are the instance's own, and its interfaces go with it."""
    asked = {int(i.get("DeviceIndex", 0)): i for i in request.get("NetworkInterfaces", ())}
    for index, nic in instance.nics.items():
        if "NetworkInterfaceId" in asked.get(index, {}):
            continue
        nic.delete_on_termination = asked.get(index, {}).get("DeleteOnTermination", True)
        instance.security_groups = instance.security_groups or list(nic.group_set)
        nic._group_set = []  # or the instance would be in them still after ModifyInstanceAttribute


class Networks(EC2Response):
    def create_security_group(self) -> ActionResult:
        # moto makes one in a VPC that isn't there.
        if not self._get_param("VpcId") and self.ec2_backend.get_default_vpc() is None:
            raise EC2ClientError("VPCIdNotSpecified", "No default VPC for this user")
        for specification in self._get_param("TagSpecifications", []):
            refuse_tags(specification.get("Tags", ()))
        return super().create_security_group()

    def authorize_security_group_ingress(self) -> ActionResult:
        # A dry run looks for the group too.
        self._named_group()
        for permission in self._get_param("IpPermissions", []):
            for source in permission.get("IpRanges", []) + permission.get("Ipv6Ranges", []):
                if not _DESCRIPTION.fullmatch(source.get("Description", "")):
                    raise EC2ClientError(
                        "InvalidParameterValue",
                        "Invalid rule description. Valid descriptions are strings less than 256 characters from the "
                        "following set: a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*",
                    )
        return super().authorize_security_group_ingress()

    def revoke_security_group_ingress(self) -> ActionResult:
        known = {rule.id for rule in self._named_group().ingress_rules}
        for rule_id in self._get_param("SecurityGroupRuleIds", []):
            if rule_id not in known:
                raise InvalidSecurityGroupRuleIdNotFoundError(rule_id)
        return super().revoke_security_group_ingress()

    def delete_security_group(self) -> ActionResult:
        # Not while an interface is in it: that of a stopped instance counts, that of a terminated one is gone.
        group = self._named_group()
        if any(group in nic.group_set for nic in self.ec2_backend.enis.values()):
            raise EC2ClientError("DependencyViolation", f"resource {group.id} has a dependent object")
        return super().delete_security_group()

    def _named_group(self) -> Any:
        name = self._get_param("GroupId") or self._get_param("GroupName")
        group = self.ec2_backend.get_security_group_by_name_or_id(name)
        if group is None:
            raise InvalidSecurityGroupNotFoundError(name)
        return group


def _with_gateway(create_default_vpc: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def create(backend: Any) -> Any:
        vpc = create_default_vpc(backend)
        gateway = backend.create_internet_gateway()
        backend.attach_internet_gateway(gateway.id, vpc.id)
        [table] = backend.describe_route_tables(filters={"vpc-id": [vpc.id]})
        backend.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)
        return vpc

    return create


def _default_subnet(request: Mapping[str, Any], backend: Any) -> Any:
    """That of the zone that is asked for, or of one that has the type: moto takes the first, though it may not."""
    vpc = backend.get_default_vpc()
    if vpc is None:
        raise EC2ClientError("VPCIdNotSpecified", "No default VPC for this user")
    subnets = backend.get_default_subnets()
    if not subnets:
        raise EC2ClientError(
            "MissingInput", f"No subnets found for the default VPC '{vpc.id}'. Please specify a subnet."
        )
    offering = places.zones_offering(backend.region_name, request["InstanceType"])
    zone = places.zone_asked(request, backend) or min(offering & set(subnets), default=None)
    if zone not in subnets:
        raise EC2ClientError("InvalidInput", f"No default subnet for availability zone: '{zone}'.")
    return subnets[zone]


def _ids(names: Iterable[str], vpc_id: str, backend: Any) -> list[str]:
    found = {name: backend.get_security_group_from_name(name, vpc_id) for name in names}
    for name, group in found.items():
        if group is None:
            raise InvalidSecurityGroupNotFoundError(name)
    return [group.id for group in found.values()]
