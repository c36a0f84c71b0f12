"""Image folders: `train/CLASS/photo.jpg` with `valid/CLASS/photo.jpg`, or `CLASS/photo.jpg` to be split."""

from functools import partial
from pathlib import Path

from trainer.data import Sample, Samples
from trainer.data.split import stratified
from trainer.decode import decode
from trainer.errors import DataRefused
from trainer.recipe import DataOptions

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def samples(root: Path, options: DataOptions) -> Samples:
    """The images below `root` with their classes in alphabetical order. Raises DataRefused."""
    try:
        if not root.is_dir():
            raise DataRefused(f"{root} is not a folder", "Give the folder that holds the class folders")
        ignored: list[str] = []
        if (root / "train").is_dir():
            return _given_split(root, ignored)
        labelled = _classes_of(root, root, ignored)
    except PermissionError as error:
        raise DataRefused(
            f"{error.filename} cannot be read: no permission", "Give this user the right to read it"
        ) from error
    return stratified(tuple(sorted(labelled)), _samples(root, labelled, sorted(labelled)), options, tuple(ignored))


def _given_split(root: Path, ignored: list[str]) -> Samples:
    if not (root / "valid").is_dir():
        raise DataRefused(f"{root} has train/ but no valid/", f"Add it, or give {root / 'train'} to have it split")
    train, valid = (_classes_of(root, root / part, ignored) for part in ("train", "valid"))
    for here, there, part, other in ((train, valid, "train", "valid"), (valid, train, "valid", "train")):
        if alone := sorted(set(here) - set(there)):
            raise DataRefused(
                f"{_listed(alone)} in {root / part} but not in {root / other}", "Both need the same class folders"
            )
    classes = tuple(sorted(train))
    return Samples(
        classes=classes,
        train=_samples(root, train, classes),
        valid=_samples(root, valid, classes),
        ignored=tuple(ignored),
    )


def _classes_of(root: Path, folder: Path, ignored: list[str]) -> dict[str, list[Path]]:
    """Class name to image files; whatever else lies there is added to `ignored`."""
    labelled: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            ignored.append(str(entry.relative_to(root)))
            continue
        files = [file for file in sorted(entry.iterdir()) if not file.name.startswith(".")]
        labelled[entry.name] = [file for file in files if file.suffix.lower() in EXTENSIONS]
        ignored += [str(file.relative_to(root)) for file in files if file.suffix.lower() not in EXTENSIONS]
    if not labelled:
        raise DataRefused(f"{folder} has no class folders", "Put each class's images into a folder of its name")
    if empty := [name for name, files in labelled.items() if not files]:
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataRefused(f"No images in {_listed(empty)} below {folder}", f"Add images ({kinds}) or remove the folder")
    if len(labelled) == 1:
        raise DataRefused(f"{folder} has only one class, {_listed(list(labelled))}", "A classifier needs at least two")
    return labelled


def _samples(root: Path, labelled: dict[str, list[Path]], classes: list[str] | tuple[str, ...]) -> tuple[Sample, ...]:
    return tuple(
        Sample(name=file.relative_to(root).as_posix(), label=label, read=partial(decode, file))
        for label, name in enumerate(classes)
        for file in labelled[name]
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
