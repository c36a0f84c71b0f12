"""Labelled images, from class folders, a label CSV or a built-in set, in a training, a validation and a test part."""

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
    labels: tuple[int, ...]  # ascending indices into Samples.classes; exactly one in a single-label set
    read: Callable[[], Tensor]  # uint8 (channel, height, width), RGB; raises UnreadableImage
    digest: Callable[[], str]  # SHA-256 of the file's bytes, in a built-in set of the pixels; raises UnreadableImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a data source holds, before any pixel is read."""

    classes: tuple[str, ...]
    multi_label: bool
    why: str  # what says that an image has one label, or any number of them
    train: tuple[Sample, ...]
    valid: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    ignored: tuple[str, ...] = ()  # what lies in the folder and is no labelled image, by name

    @property
    def parts(self) -> dict[str, tuple[Sample, ...]]:
        """The parts that hold any image, by name."""
        return {name: part for name in ("train", "valid", "test") if (part := getattr(self, name))}


def find(source: str, options: DataOptions) -> Samples:
    """The labelled images of a folder, or of the built-in set of that name. Raises DataRefused."""
    from trainer.data import builtin, csv_labels, folders

    if source in builtin.NAMES:
        return builtin.samples(source, options)
    if not source:
        raise DataRefused("The recipe names no data and none was given", "Give --data FOLDER, or --data digits")
    root = Path(source)
    if not root.exists():
        hint = closest(source, builtin.NAMES)
        raise DataRefused(f"There is no folder {source!r} and no built-in set of that name{hint}", "Check the path")
    if not root.is_dir():
        raise DataRefused(f"{root} is not a folder", "Give the folder that holds the images")
    try:
        return csv_labels.samples(root, options) if options.labels_csv else folders.samples(root, options)
    except PermissionError as error:
        raise DataRefused(
            f"{error.filename} cannot be read: no permission", "Give this user the right to read it"
        ) from error
