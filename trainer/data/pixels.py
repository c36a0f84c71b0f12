"""Decoded, resized images: every file is read once, before the first epoch, so a broken one cannot stop a run midway.

The pixels lie as uint8 in one temporary file without a name, mapped into memory: a small set stays in RAM, one larger
than RAM is paged by the system, and nothing is left behind however the run ends.
"""

import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import transforms
from trainer.data import Sample
from trainer.decode import UnreadableImage
from trainer.rundir import writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A sample that was left out, and why."""

    name: str
    reason: str


class Pixels:
    """The images that could be decoded, in the samples' order."""

    def __init__(self, samples: Sequence[Sample], shapes: Sequence[tuple[int, int, int]], memory: mmap.mmap) -> None:
        self.names = [sample.name for sample in samples]
        self.labels = [sample.label for sample in samples]
        self._shapes = shapes
        self._memory = memory
        self._offsets = [0]
        for channels, height, width in shapes:
            self._offsets.append(self._offsets[-1] + channels * height * width)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (channel, height, width), a view of the cache: not to be written to."""
        offset = self._offsets[index]
        count = self._offsets[index + 1] - offset
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=count, offset=offset).view(self._shapes[index])


def decode_all(
    samples: Sequence[Sample], side_px: int, folder: Path, workers: int, on_image: Callable[[], None]
) -> tuple[Pixels, list[Unreadable]]:
    """Every sample's pixels with the shorter side at `side_px`, and the samples that had to be left out.

    The pixels lie in a nameless file in `folder`. Raises DiskFull.
    """
    kept: list[Sample] = []
    shapes: list[tuple[int, int, int]] = []
    unreadable: list[Unreadable] = []
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        for sample, image in zip(samples, _decoded(samples, side_px, workers), strict=True):
            if isinstance(image, UnreadableImage):
                unreadable.append(Unreadable(name=sample.name, reason=image.reason))
            else:
                file.write(image.numpy().tobytes())
                channels, height, width = image.shape
                kept.append(sample)
                shapes.append((channels, height, width))
            on_image()
        if not kept:
            file.write(b"\0")  # an empty file cannot be mapped
        file.flush()
        memory = mmap.mmap(file.fileno(), 0)
    return Pixels(kept, shapes, memory), unreadable


def _decoded(samples: Sequence[Sample], side_px: int, workers: int) -> Iterator[Tensor | UnreadableImage]:
    def read(sample: Sample) -> Tensor | UnreadableImage:
        try:
            return transforms.shorter_side(sample.read(), side_px)
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        yield from pool.map(read, samples)
