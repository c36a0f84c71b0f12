"""The machine images there are, and the public parameters that name the latest of them.

moto's own catalogue (1177 images, 3–5 s to load, none of them ours) is switched off. What stands here is what gpuops
asks for: fast.ai's community images of 2017 in their five regions, and the Deep Learning AMIs in every region.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import moto.ec2.models.amis
import moto.ssm.models
from moto.core.utils import utcnow
from moto.ec2.models.amis import Ami, AmiBackend

FASTAI_IMAGES = {
    "us-west-2": "ami-8c4288f4",
    "us-east-1": "ami-c6ac1cbc",
    "eu-west-1": "ami-b93c9ec0",
    "ap-south-1": "ami-c53975aa",
    "ap-southeast-2": "ami-39ec055b",
}
"""fast.ai's part 1 v2 image by region (reshamas/fastai_deeplearn_part1, tools/aws_ami_gpu_setup.md)."""

_AMAZON = "898082745236"  # the account that the Deep Learning AMIs belong to
_COMMUNITY = (
    "111122223333"  # fast.ai's account is not known; this is the one that AWS's documentation uses for examples
)
_PARAMETER = "/aws/service/deeplearning/ami/x86_64/{kind}/latest/ami-id"


@dataclass(frozen=True, slots=True)
class _Release:
    """One published Deep Learning AMI. `kind` is its word in the public parameter's path."""

    kind: str
    title: str
    date: datetime
    disk_gb: int = 75

    @property
    def name(self) -> str:
        return f"{self.title} {self.date:%Y%m%d}"

    def id(self, region: str) -> str:
        """An image has another id in each region."""
        return "ami-" + hashlib.sha256(f"{region}/{self.name}".encode()).hexdigest()[:17]


_BASE = ("base-oss-nvidia-driver-gpu-ubuntu-22.04", "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)")
_PYTORCH = (
    "oss-nvidia-driver-gpu-pytorch-2.7-ubuntu-22.04",
    "Deep Learning OSS Nvidia Driver AMI GPU PyTorch 2.7 (Ubuntu 22.04)",
)
_RELEASES = (  # oldest first, so that the last of a kind is its latest
    _Release(*_BASE, date=datetime(2026, 9, 4)),
    _Release(*_BASE, date=datetime(2026, 10, 9)),
    _Release(*_PYTORCH, date=datetime(2026, 10, 9)),
)


class Image(Ami):
    """An image with a root disk of its own size. moto gives each 15 GB of magnetic disk that outlives its machine."""

    def __init__(
        self,
        backend: Any,
        image_id: str,
        *,
        disk_gb: int,
        disk_type: str,
        has_instance_connect: bool,
        **attributes: Any,
    ) -> None:
        super().__init__(
            backend,
            image_id,
            public=True,
            architecture="x86_64",
            virtualization_type="hvm",
            hypervisor="xen",
            root_device_type="ebs",
            root_device_name="/dev/sda1",
            boot_mode="legacy-bios",
            **attributes,
        )
        self.ebs_snapshot.volume.size = disk_gb
        self._disk_gb = disk_gb
        self._disk_type = disk_type
        self.has_instance_connect = has_instance_connect
        # AWS deprecates a public image two years after it was made, at the latest.
        self.deprecated_at = self.creation_date + timedelta(days=730)
        self.deprecation_time = f"{self.deprecated_at:%Y-%m-%dT%H:%M:%S.000Z}"

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        disk = {
            "SnapshotId": self.ebs_snapshot.id,
            "VolumeSize": self._disk_gb,
            "VolumeType": self._disk_type,
            "DeleteOnTermination": True,
            "Encrypted": False,
        }
        return [{"DeviceName": self.root_device_name, "Ebs": disk}]

    @property
    def is_deprecated(self) -> bool:
        """True for an image that a search passes over; asked for by id, it is still there."""
        return bool(self.deprecated_at < utcnow())


def install() -> None:
    """Put these images and parameters in place of moto's. Call it before a region is touched."""
    AmiBackend._load_amis = _load_images  # type: ignore[method-assign, assignment]
    moto.ssm.models.ParameterDict = _PublicParameters  # type: ignore[misc]


def _load_images(backend: Any) -> None:
    region = backend.region_name
    if region in FASTAI_IMAGES:
        backend.amis[FASTAI_IMAGES[region]] = Image(
            backend,
            FASTAI_IMAGES[region],
            disk_gb=80,
            disk_type="gp2",
            has_instance_connect=False,  # it came in 2019
            name="fastai-part1v2-p2",
            description="fast.ai Practical Deep Learning For Coders, part 1 v2",
            owner_id=_COMMUNITY,
            image_location=f"{_COMMUNITY}/fastai-part1v2-p2",
            creation_date=datetime(2017, 10, 30),
        )
    for release in _RELEASES:
        backend.amis[release.id(region)] = Image(
            backend,
            release.id(region),
            disk_gb=release.disk_gb,
            disk_type="gp3",
            has_instance_connect=True,
            name=release.name,
            description=release.title,
            owner_id=_AMAZON,
            owner_alias="amazon",
            image_location=f"amazon/{release.name}",
            creation_date=release.date,
        )


class _PublicParameters(moto.ssm.models.ParameterDict):
    """A region's parameters, with AWS's public ones for the Deep Learning AMIs, which moto lacks."""

    def __init__(self, account_id: str, region_name: str) -> None:
        super().__init__(account_id, region_name)
        for release in _RELEASES:
            name = _PARAMETER.format(kind=release.kind)
            versions = self[name]
            versions.append(
                moto.ssm.models.Parameter(  # type: ignore[abstract]  # moto's own code makes them too
                    account_id=account_id,
                    name=name,
                    value=release.id(region_name),
                    parameter_type="String",
                    description=None,
                    allowed_pattern=None,
                    keyid=None,
                    last_modified_date=release.date.replace(tzinfo=timezone.utc),
                    version=len(versions) + 1,
                    data_type="text",
                )
            )
