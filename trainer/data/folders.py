"""Image folders: `train/CLASS/photo.jpg` with `valid/CLASS/photo.jpg`, or `CLASS/photo.jpg` to be split."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trainer.data import Sample, Samples
from trainer.data.labels import multi_label
from trainer.data.split import split
from trainer.decode import EXTENSIONS, decode, digest
from trainer.errors import DataRefused
from trainer.recipe import DataOptions


def samples(root: Path, options: DataOptions) -> Samples:
    """The images below `root` with their classes in alphabetical order.

    A `test/` beside `train/` and `valid/` (or `val/`) is the test part where it has class folders; a folder of
    unlabelled images is none. Raises DataRefused, PermissionError.
    """
    ignored: list[str] = []
    several, why = multi_label(options, False, "class folders give every image one label")
    if (root / "train").is_dir():
        parts = _given_parts(root, options, ignored)
    else:
        parts = {"train": _classes_of(root, root, ignored)}
    classes = tuple(sorted(parts["train"]))
    found = {part: _samples(root, labelled, classes) for part, labelled in parts.items()}
    whole = Samples(
        classes=classes,
        multi_label=several,
        why=why,
        train=found["train"],
        valid=found.get("valid", ()),
        test=found.get("test", ()),
        ignored=tuple(ignored),
    )
    return whole if whole.valid else split(whole, options)


def file_sample(root: Path, file: Path, labels: tuple[int, ...]) -> Sample:
    """The sample of an image file below `root`."""
    return Sample(name=name_below(root, file), labels=labels, read=partial(decode, file), digest=partial(digest, file))


def name_below(root: Path, path: Path) -> str:
    """The path below `root`; where its bytes are no UTF-8 they are written out, for no log could take them."""
    return os.fsencode(path.relative_to(root).as_posix()).decode(errors="backslashreplace")


def listed(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _given_parts(root: Path, options: DataOptions, ignored: list[str]) -> dict[str, dict[str, list[Path]]]:
    valid = root / "valid" if (root / "valid").is_dir() else root / "val"
    if not valid.is_dir():
        raise DataRefused(f"{root} has train/ but no valid/", f"Add it, or give {root / 'train'} to have it split")
    if options.folds or options.test_fraction:
        next_step = f"Leave out data.folds and data.test_fraction, or give {root / 'train'} to have it split"
        raise DataRefused(f"{root} is split already, into train/ and {valid.name}/", next_step)
    folders = {"train": root / "train", "valid": valid}
    if (root / "test").is_dir():
        if any(entry.is_dir() for entry in (root / "test").iterdir()):
            folders["test"] = root / "test"
        else:
            ignored.append("test")
    parts = {part: _classes_of(root, folder, ignored) for part, folder in folders.items()}
    for part in folders:
        for here, there in ((part, "train"), ("train", part)):
            if alone := sorted(set(parts[here]) - set(parts[there])):
                raise DataRefused(
                    f"{listed(alone)} in {folders[here]} but not in {folders[there]}",
                    "Both need the same class folders",
                )
    return parts


def _classes_of(root: Path, folder: Path, ignored: list[str]) -> dict[str, list[Path]]:
    """Class name to image files; whatever else lies there is added to `ignored`."""
    labelled: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            ignored.append(name_below(root, entry))
            continue
        files = [file for file in sorted(entry.iterdir()) if not file.name.startswith(".")]
        labelled[name_below(folder, entry)] = [file for file in files if is_image(file)]
        ignored += [name_below(root, file) for file in files if not is_image(file)]
    if not labelled:
        raise DataRefused(f"{folder} has no class folders", "Put each class's images into a folder of its name")
    if empty := [name for name, files in labelled.items() if not files]:
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataRefused(f"No images in {listed(empty)} below {folder}", f"Add images ({kinds}) or remove the folder")
    if len(labelled) == 1:
        raise DataRefused(f"{folder} has only one class, {listed(list(labelled))}", "A classifier needs at least two")
    return labelled


def is_image(file: Path) -> bool:
    """Whether it is a file that is named like an image: no folder, and no pipe, which to read would wait for ever."""
    return file.suffix.lower() in EXTENSIONS and file.is_file()


def _samples(root: Path, labelled: dict[str, list[Path]], classes: Sequence[str]) -> tuple[Sample, ...]:
    return tuple(file_sample(root, file, (label,)) for label, name in enumerate(classes) for file in labelled[name])
