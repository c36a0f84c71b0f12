"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the binary files that their publisher offers beside the pickles.

The format and the archives' MD5 sums: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.utils import download_url

PUBLISHER = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    file: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int  # before each image; the last of them is the label
    class_names: str


ARCHIVES = {
    "cifar10": Archive(
        file="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        label_bytes=1,
        class_names="batches.meta.txt",
    ),
    "cifar100": Archive(
        file="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        label_bytes=2,
        class_names="fine_label_names.txt",
    ),
}


def download(name: str, root: Path) -> Path:
    """The archive's path, after it was downloaded where it was missing. Raises OSError, RuntimeError."""
    archive = ARCHIVES[name]
    download_url(f"{PUBLISHER}/{archive.file}", str(root), md5=archive.md5)
    return root / archive.file


def images(name: str, path: Path, part: str) -> tuple[Tensor, list[int]]:
    """The images of the part `train` or `test`, uint8 (image, channel, height, width), and their labels."""
    archive = ARCHIVES[name]
    content = b"".join(
        _member(archive, path, member) for member in (archive.train if part == "train" else archive.test)
    )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, archive.label_bytes + 3 * 32 * 32)
    return records[:, archive.label_bytes :].reshape(-1, 3, 32, 32), records[:, archive.label_bytes - 1].tolist()


def classes(name: str, path: Path) -> tuple[str, ...]:
    """The classes' names, in the order of the labels."""
    return tuple(_member(ARCHIVES[name], path, ARCHIVES[name].class_names).decode().split())


def _member(archive: Archive, path: Path, member: str) -> bytes:
    with tarfile.open(path) as tar:  # read in place: nothing is extracted to a path that the archive chose
        file = tar.extractfile(f"{archive.folder}/{member}")
        assert file is not None  # a folder or a device: not in an archive with that checksum
        return file.read()
