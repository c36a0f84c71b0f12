"""`python -m trainer predict`: image files to a CSV table of classes and probabilities, equal to the run's own.

Needs torch, torchvision and safetensors alone, and of the run nothing but `out/`.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from trainer.answers import answer
from trainer.data.ahead import ahead
from trainer.decode import EXTENSIONS, UnreadableImage, digest
from trainer.errors import BrokenImages, DataRefused
from trainer.trained import Trained

BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One file: its views, or why there are none."""

    path: Path
    views: Tensor | None
    reason: str = ""


def predict(trained: Trained, paths: Sequence[Path], tta: int, workers: int, to: TextIO) -> list[Shown]:
    """Write a row per image to `to`, in order; the files that cannot be decoded. Raises DataRefused."""
    said = trained.description
    table = csv.writer(to)
    table.writerow(("image", "predicted", "probability", *said.classes))
    lost: list[Shown] = []
    for shown, probabilities in _classified(trained, images(paths), tta, workers):
        if probabilities is None:
            lost.append(shown)
        else:
            table.writerow((shown.path, *answer(said.classes, probabilities, said.threshold)))
    return lost


def images(paths: Iterable[Path]) -> list[Path]:
    """The files, and for each folder every image below it, by name. Raises DataRefused where there is none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise DataRefused(f"There is no file {path}", "Check the path")
    if not found:
        raise DataRefused(
            "There is no image in what was given", f"Give files or folders of {' '.join(sorted(EXTENSIONS))}"
        )
    return found


def explain(lost: Sequence[Shown]) -> None:
    """Name the files that have no row. Raises BrokenImages if there is one."""
    for shown in lost:
        print(f"{shown.path}: {shown.reason}", file=sys.stderr)
    if lost:
        raise BrokenImages(f"{len(lost)} images cannot be decoded and have no row", "Repair or remove the files above")


def _classified(
    trained: Trained, paths: Sequence[Path], tta: int, workers: int
) -> Iterator[tuple[Shown, Tensor | None]]:
    def show(path: Path) -> Shown:
        try:
            image = trained.read(path)
            views = trained.views(image, digest(path), tta)
        except UnreadableImage as error:
            return Shown(path=path, views=None, reason=error.reason)
        return Shown(path=path, views=views)

    per_batch = max(BATCH // (1 + tta), 1)
    with closing(ahead(show, paths, workers, per_batch)) as every:
        waiting: list[Shown] = []
        for number, shown in enumerate(every, 1):
            waiting.append(shown)
            if len(waiting) == per_batch or number == len(paths):
                yield from zip(waiting, _probabilities(trained, waiting), strict=True)
                waiting = []


def _probabilities(trained: Trained, batch: Sequence[Shown]) -> Iterator[Tensor | None]:
    views = [shown.views for shown in batch if shown.views is not None]
    if not views:
        yield from (None for _ in batch)
        return
    found = iter(trained.classify(torch.cat(views)).view(len(views), len(views[0]), -1).double().mean(dim=1).float())
    yield from (None if shown.views is None else next(found) for shown in batch)
