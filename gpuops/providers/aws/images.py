"""Which image a machine boots from: the one that goes with its type, or the one that the person named.

A (type, image) pair is chosen together: the 2017 fast.ai image's NVIDIA driver predates today's GPUs, and today's
drivers no longer know the K80 of a p2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuops.errors import BadImage, NotPermitted, ProviderError
from gpuops.providers.aws.permissions import IMAGE_PARAMETERS
from gpuops.providers.aws.refusals import code_of, translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2.type_defs import ImageTypeDef
    from mypy_boto3_ssm.client import SSMClient

# The image of fast.ai's 2017 course, by region. Sydney's id is the one of the course notes; two public scripts give
# Ireland's id for it, which can't be, as ids are unique to a region.
_COMMUNITY_AMIS = {
    "us-west-2": "ami-8c4288f4",
    "us-east-1": "ami-c6ac1cbc",
    "eu-west-1": "ami-b93c9ec0",
    "ap-south-1": "ami-c53975aa",
    "ap-southeast-2": "ami-39ec055b",
}

# AWS's public parameters for the newest Deep Learning AMI, tried in this order: the vendor's own page and public use
# disagree about the "-gpu-".
_PARAMETERS = (
    f"{IMAGE_PARAMETERS}ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
    f"{IMAGE_PARAMETERS}ami/x86_64/base-oss-nvidia-driver-ubuntu-22.04/latest/ami-id",
)
_NAMES = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that can be launched. `disk_gb` is the smallest root disk that it fits on."""

    id: str
    name: str
    architecture: str
    root_device: str
    disk_gb: int

    @property
    def has_imds_v2(self) -> bool:
        """False for the image that is older than IMDSv2 (2019): its cloud-init reads the first version only."""
        return not is_community(self.id)


def is_community(image_id: str) -> bool:
    """Whether it is fast.ai's image of 2017."""
    return image_id in _COMMUNITY_AMIS.values()


def community(ec2: EC2Client, region: str) -> Image | None:
    """fast.ai's image of 2017, if the region (still) has it.

    It is asked for by id: that is definite, also for an image that is deprecated and so hidden from searches.
    """
    if region not in _COMMUNITY_AMIS:
        return None
    try:
        return named(ec2, _COMMUNITY_AMIS[region], region)
    except BadImage:
        return None


def deep_learning(ec2: EC2Client, ssm: SSMClient, region: str) -> Image | None:
    """AWS's newest Deep Learning Base AMI: by its public parameter, or by name where that isn't there or permitted."""
    for parameter in _PARAMETERS:
        try:
            with translated("look up the newest Deep Learning AMI", region=region):
                return named(ec2, ssm.get_parameter(Name=parameter)["Parameter"]["Value"], region)
        except (NotPermitted, BadImage):
            break
        except ProviderError as error:
            if code_of(error) not in {"ParameterNotFound", "ParameterVersionNotFound"}:
                raise
    with translated("look for the newest Deep Learning AMI", region=region):
        found = ec2.describe_images(
            Owners=["amazon"],
            Filters=[
                {"Name": "name", "Values": [_NAMES]},
                {"Name": "architecture", "Values": ["x86_64"]},
                {"Name": "state", "Values": ["available"]},
            ],
        )["Images"]
    newest = max(found, key=lambda image: image["CreationDate"], default=None)
    return _image(newest) if newest else None


def named(ec2: EC2Client, image_id: str, region: str) -> Image:
    """The image of that id. Raises `BadImage` where there is none, or it can't be launched and stopped."""
    try:
        with translated(f"describe the image {image_id}", region=region):
            found = ec2.describe_images(ImageIds=[image_id])["Images"]
    except ProviderError as error:
        if not code_of(error).startswith("InvalidAMIID"):
            raise
        raise bad(f"There is no image {image_id} in {region}", region) from error
    if not found:
        raise bad(f"There is no image {image_id} in {region}", region)
    [image] = found
    if image.get("State") != "available":
        raise bad(f"The image {image_id} is not available but {image.get('State')}", region)
    if image.get("RootDeviceType") != "ebs":
        raise bad(f"A machine of the image {image_id} can't be stopped and kept: it has no EBS disk", region)
    return _image(image)


def bad(what: str, region: str) -> BadImage:
    """The error that an image is no good, with what to type instead."""
    return BadImage(
        f"{what}.",
        left_behind="Nothing was launched.",
        next_step="Leave out --image, and gpuops takes the one that goes with the type; or list them: "
        f"aws ec2 describe-images --region {region} --owners self amazon --filters 'Name=name,Values=Deep Learning*'",
    )


def _image(image: ImageTypeDef) -> Image:
    root = image["RootDeviceName"]
    sizes = [
        mapping["Ebs"].get("VolumeSize", 0)
        for mapping in image["BlockDeviceMappings"]
        if mapping.get("DeviceName") == root and "Ebs" in mapping
    ]
    return Image(
        id=image["ImageId"],
        name=image.get("Name", image["ImageId"]),
        architecture=image["Architecture"],
        root_device=root,
        disk_gb=max(sizes, default=0),
    )
