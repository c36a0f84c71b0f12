"""What EC2 refuses and moto lets pass. Codes and texts are EC2's own."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any

import moto.ec2.models.instances
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError

from gpuops.sandbox import places

_USER_DATA_BYTES = 16 * 1024
_TAG_KEY_LENGTH = 128
_TAG_VALUE_LENGTH = 256
_INSTANCE_ID = re.compile(r"i-([0-9a-f]{8}|[0-9a-f]{17})")
_IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")


class _UnknownInstance(InvalidInstanceIdError):
    """EC2 tells an id that can't be one from an id of no instance; moto doesn't."""

    def __init__(self, ids: Any) -> None:
        super().__init__(ids)
        for instance_id in [ids] if isinstance(ids, str) else ids:
            if not _INSTANCE_ID.fullmatch(instance_id):
                self.code = "InvalidInstanceID.Malformed"
                self.message = f'Invalid id: "{instance_id}"'


def install() -> None:
    """Every look-up of an instance in moto ends in this error when there is none."""
    moto.ec2.models.instances.InvalidInstanceIdError = _UnknownInstance  # type: ignore[attr-defined, assignment]


def refuse_image_ids(ids: Iterable[str]) -> None:
    for image_id in ids:
        if not _IMAGE_ID.fullmatch(image_id):
            raise EC2ClientError("InvalidAMIID.Malformed", f'Invalid id: "{image_id}" (expecting "ami-...")')


def refuse_launch(request: Mapping[str, Any], backend: Any) -> None:
    """Raise what EC2 answers to a RunInstances that it can't carry out."""
    image_id = request.get("ImageId", "")
    refuse_image_ids([image_id])
    image = backend.describe_images(ami_ids=[image_id])[0]  # raises InvalidAMIID.NotFound
    _refuse_type(request["InstanceType"], backend.region_name, places.zone_asked(request, backend))
    name = request.get("KeyName")
    if name is not None and name not in backend.key_pairs:
        raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")
    _refuse_user_data(request.get("UserData", ""))
    _refuse_small_disk(request.get("BlockDeviceMappings", ()), image)
    for specification in request.get("TagSpecifications", ()):
        refuse_tags(specification.get("Tags", ()))


def refuse_tags(tags: Iterable[Mapping[str, str]]) -> None:
    """An empty value is allowed."""
    for tag in tags:
        if len(tag["Key"]) > _TAG_KEY_LENGTH:
            raise _invalid(f"Tag key exceeds the maximum length of {_TAG_KEY_LENGTH} characters")
        if len(tag.get("Value") or "") > _TAG_VALUE_LENGTH:
            raise _invalid(f"Tag value exceeds the maximum length of {_TAG_VALUE_LENGTH} characters")
        if tag["Key"].startswith("aws:"):
            raise _invalid("Tag keys starting with 'aws:' are reserved for internal use")


def _refuse_type(instance_type: str, region: str, zone: str | None) -> None:
    if not places.exists(instance_type):
        raise _invalid(f"Invalid value '{instance_type}' for InstanceType.")
    zones = places.zones_offering(region, instance_type)
    if not zones:
        raise EC2ClientError(
            "Unsupported",
            "The requested configuration is currently not supported. "
            "Please check the documentation for supported configurations.",
        )
    if zone and zone not in zones:
        raise EC2ClientError(
            "Unsupported",
            f"Your requested instance type ({instance_type}) is not supported in your requested Availability Zone "
            f"({zone}). Please retry your request by not specifying an Availability Zone or choosing "
            f"{', '.join(sorted(zones))}.",
        )


def _refuse_user_data(encoded: str) -> None:
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise EC2ClientError("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.") from error
    if len(raw) > _USER_DATA_BYTES:
        raise _invalid(f"User data is limited to {_USER_DATA_BYTES} bytes")


def _refuse_small_disk(mappings: Iterable[Mapping[str, Any]], image: Any) -> None:
    root = image.block_device_mappings[0]
    snapshot_gb = root["Ebs"]["VolumeSize"]
    for mapping in mappings:
        size_gb = int(mapping.get("Ebs", {}).get("VolumeSize") or snapshot_gb)
        if mapping["DeviceName"] == root["DeviceName"] and size_gb < snapshot_gb:
            raise EC2ClientError(
                "InvalidBlockDeviceMapping",
                f"Volume of size {size_gb}GB is smaller than snapshot '{root['Ebs']['SnapshotId']}', "
                f"expect size >= {snapshot_gb}GB",
            )


def _invalid(message: str) -> EC2ClientError:
    return EC2ClientError("InvalidParameterValue", message)
