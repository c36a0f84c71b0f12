"""Built-in sets: scikit-learn's digits, and under torchvision's names what its own code can read without unpickling.

Downloaded ones come from their publishers, are checked against torchvision's checksums and stay in the cache. `digits`
are 1,797 of 8×8 pixels, the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin & Kaynak,
1998), which scikit-learn carries. CIFAR is read from its publisher's binary files, for those that torchvision reads are
pickles (law 8). The others of torchvision's tell their labels by private attributes alone: give their files in class
folders.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torchvision import datasets

from trainer.data import Sample, Samples, cifar, folders
from trainer.data.labels import multi_label
from trainer.data.split import split
from trainer.errors import DataRefused
from trainer.recipe import DataOptions
from trainer.store import default_cache


def samples(name: str, options: DataOptions) -> Samples:
    """The set of that name, one of NAMES, split as the options say where it has no parts of its own.

    A published test part is the test part; only imagenette's "val" is the validation part. Raises DataRefused.
    """
    if options.labels_csv:
        raise DataRefused(f"{name} has labels of its own", "Leave out data.labels_csv")
    root = default_cache() / "datasets"
    try:
        return NAMES[name](name, root, options)
    except (OSError, RuntimeError) as error:  # RuntimeError: a checksum that differs; URLError is an OSError
        next_step = "Check the network; remove it there to have it downloaded again"
        raise DataRefused(f"{name} could not be had in {root}: {error}", next_step) from error


def _digits(name: str, root: Path, options: DataOptions) -> Samples:
    from sklearn.datasets import load_digits  # slow to import, see split.py

    digits = load_digits()
    shades = torch.from_numpy(digits.images)  # (image, height, width), 17 shades: 0 to 16
    images = (shades * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    return _of_arrays(digits.target_names, _samples(name, images, digits.target.tolist()), (), options)


def _mnist(name: str, root: Path, options: DataOptions) -> Samples:
    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[name]
    place = _downloaded(root / name, lambda folder: kind(folder, download=True))
    if (place / kind.__name__ / "processed").exists():  # torchvision would torch.load() it instead of the publisher's
        raise DataRefused(f"{place} holds the pickles of an old torchvision", "Remove its folder processed/")
    train, test = (kind(place, train=train) for train in (True, False))
    return _of_arrays(
        train.classes,
        _samples(f"{name}/train", train.data.unsqueeze(1), train.targets.tolist()),
        _samples(f"{name}/test", test.data.unsqueeze(1), test.targets.tolist()),
        options,
    )


def _cifar(name: str, root: Path, options: DataOptions) -> Samples:
    archive = cifar.download(name, root)
    train, test = (_samples(f"{name}/{part}", *cifar.images(name, archive, part)) for part in ("train", "test"))
    return _of_arrays(cifar.classes(name, archive), train, test, options)


def _imagenette(name: str, root: Path, options: DataOptions) -> Samples:
    size = "320px"
    place = _downloaded(root / name, lambda folder: datasets.Imagenette(folder, size=size, download=True))
    found = folders.samples(place / "imagenette2-320", options)
    # Its folders are WordNet's numbers, in the order of these names.
    return replace(found, classes=tuple(words[0] for words in datasets.Imagenette(place, size=size).classes))


def _eurosat(name: str, root: Path, options: DataOptions) -> Samples:
    place = _downloaded(root / name, lambda folder: datasets.EuroSAT(folder, download=True))
    return folders.samples(place / "eurosat" / "2750", options)


NAMES: dict[str, Callable[[str, Path, DataOptions], Samples]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion_mnist": _mnist,
    "kmnist": _mnist,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagenette": _imagenette,
    "eurosat": _eurosat,
}


def _downloaded(place: Path, download: Callable[[Path], object]) -> Path:
    """The set's folder, which is whole or not there: torchvision takes half an extracted archive for all of it."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as beside:
            fresh = Path(beside, place.name)
            download(fresh)
            fresh.rename(place)
    return place


def _of_arrays(
    classes: Sequence[str], every: tuple[Sample, ...], test: tuple[Sample, ...], options: DataOptions
) -> Samples:
    several, why = multi_label(options, False, "every image of the set has one label")
    names = tuple(str(name) for name in classes)
    return split(Samples(classes=names, multi_label=several, why=why, train=every, valid=(), test=test), options)


def _samples(name: str, images: Tensor, labels: Sequence[int]) -> tuple[Sample, ...]:
    """From uint8 (image, channel, height, width); one channel becomes three, so that any network takes it."""
    return tuple(
        Sample(
            name=f"{name}/{index}",
            labels=(label,),
            read=partial(image.expand, 3, -1, -1),
            digest=partial(_digest, image),
        )
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    )


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()
