"""Labelled images: a folder of photographs or a built-in set, split into a training and a validation part."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trainer.errors import DataRefused
from trainer.knobs import closest
from trainer.recipe import DataOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One labelled image that has not been read yet."""

    name: str  # the path below the data folder, or the number in a built-in set
    label: int  # index into Samples.classes
    read: Callable[[], Tensor]  # uint8 (channel, height, width), RGB; raises UnreadableImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a data source holds, before any pixel is read."""

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    valid: tuple[Sample, ...]
    ignored: tuple[str, ...] = ()  # files that are not images, by name


def find(source: str, options: DataOptions) -> Samples:
    """The labelled images of a folder, or of the built-in set `digits`. Raises DataRefused."""
    from trainer.data import digits, folders

    if source == digits.NAME:
        return digits.samples(options)
    if not source:
        raise DataRefused("The recipe names no data and none was given", "Give --data FOLDER, or --data digits")
    if not Path(source).exists():
        what = f"There is no folder {source!r} and no built-in set of that name{closest(source, [digits.NAME])}"
        raise DataRefused(what, "Check the path")
    return folders.samples(Path(source), options)
