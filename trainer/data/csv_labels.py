"""A label CSV in the data folder: a header, then an image and its labels, split on spaces, in each line.

An image is named by its path below the data folder, with or without its extension. Every line must have its image;
images without a line are listed as ignored. The data is split by the options, whatever its folders are called.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from trainer.data import Samples
from trainer.data.folders import file_sample, is_image, listed, name_below
from trainer.data.labels import multi_label
from trainer.data.split import split
from trainer.errors import DataRefused
from trainer.recipe import DataOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the CSV that labels an image."""

    line: int
    image: str
    labels: tuple[str, ...]


def samples(root: Path, options: DataOptions) -> Samples:
    """The labelled images in the CSV's order, their classes in alphabetical order.

    Raises DataRefused, PermissionError.
    """
    files = _files_below(root)
    named = _by_name(root, files)
    rows = _rows(root, options.labels_csv, named)
    several, why = _kind(rows, options)
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    if len(classes) < (1 if several else 2):
        what = f"{options.labels_csv} has only the classes {listed(classes)}" if classes else "There are no labels"
        raise DataRefused(what, "A classifier needs at least two")
    number = {name: index for index, name in enumerate(classes)}
    labelled = _labelled(root, rows, named, options.labels_csv)
    every = tuple(
        file_sample(root, file, tuple(sorted(number[label] for label in row.labels))) for file, row in labelled.items()
    )
    ignored = tuple(name_below(root, file) for file in files if file not in labelled)
    whole = Samples(classes=classes, multi_label=several, why=why, train=every, valid=(), ignored=ignored)
    return split(whole, options)


def _files_below(root: Path) -> list[Path]:
    """The image files; what is hidden stays so, links to folders are not followed."""
    found: list[Path] = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [file for name in sorted(files) if not name.startswith(".") and is_image(file := Path(folder, name))]
    return found


def _by_name(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files that a name may mean: a whole one just that file, one without extension each that has it."""
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(name_below(root, file.with_suffix("")), []).append(file)
    return named | {name_below(root, file): [file] for file in files}


def _rows(root: Path, name: str, named: Mapping[str, Sequence[Path]]) -> list[Row]:
    _check_inside(name, "data.labels_csv")
    path = root / name
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except PermissionError:
        raise
    except OSError as error:
        raise DataRefused(f"{path} cannot be read: {error.strerror}", "Check data.labels_csv") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataRefused(f"{path} is not a CSV file in UTF-8: {error}", "Save it as CSV, encoded in UTF-8") from error
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise DataRefused(f"{path} has no header of two columns with lines below it", "The first line is the header")
    header = lines[0][1]
    if header[0].strip() in named:
        raise DataRefused(f"The first line of {path} labels an image", "Put a header above it, such as: image,labels")
    rows = []
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            what = f"{name}, line {line} has {len(cells)} columns, the header {len(header)}"
            raise DataRefused(what, "Separate columns by commas and labels by spaces")
        _check_inside(cells[0].strip(), f"{name}, line {line}")
        rows.append(Row(line=line, image=cells[0].strip(), labels=tuple(dict.fromkeys(cells[1].split()))))
    return rows


def _check_inside(path: str, where: str) -> None:
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or ".." in PureWindowsPath(path).parts:
        raise DataRefused(f"{where}: {path!r} is not a path below the data folder", "Give it relative to that folder")


def _kind(rows: Sequence[Row], options: DataOptions) -> tuple[bool, str]:
    several = next((row for row in rows if len(row.labels) > 1), None)
    because = f"line {several.line} has {len(several.labels)} labels" if several else "no line has more than one label"
    multi, why = multi_label(options, several is not None, because)
    if several and not multi:
        raise DataRefused(
            f"{options.labels_csv}, line {several.line} has the labels {' '.join(several.labels)}",
            'An image has one where data.labels = "single": correct the line, or say "multi"',
        )
    empty = next((row for row in rows if not row.labels), None)
    if empty and options.labels != "multi":  # only who says "multi" is known to mean it
        next_step = 'Give it one, or say data.labels = "multi": then it has none of the classes'
        raise DataRefused(f"{options.labels_csv}, line {empty.line}: {empty.image!r} has no label", next_step)
    return multi, why


def _labelled(root: Path, rows: Sequence[Row], named: Mapping[str, Sequence[Path]], name: str) -> dict[Path, Row]:
    """Each row's file, in the rows' order."""
    labelled: dict[Path, Row] = {}
    missing: list[str] = []
    for row in rows:
        files = named.get(row.image, ())
        if not files:
            missing.append(row.image)
            continue
        if len(files) > 1:
            found = listed([name_below(root, file) for file in files])
            raise DataRefused(f"{name}, line {row.line}: {row.image!r} may be {found}", "Add the extension")
        if files[0] in labelled:
            image = name_below(root, files[0])
            what = f"{name} labels {image!r} in the lines {labelled[files[0]].line} and {row.line}"
            raise DataRefused(what, "Keep one of them")
        labelled[files[0]] = row
    if missing:
        what = f"{name} labels {len(missing)} images that are not there: {listed(missing)}"
        raise DataRefused(what, "Add the images, or remove their lines")
    return labelled
