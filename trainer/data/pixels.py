"""Decoded, resized images: every file is read once, before the first epoch, so a broken one cannot stop a run midway.

They stay in the cache, keyed by what is in the files and how it is read, and are mapped into memory: a small set stays
in RAM, one larger than RAM is paged by the system. A filling that was interrupted goes on after its last whole shard.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from trainer import transforms
from trainer.data import Sample
from trainer.data.ahead import ahead
from trainer.decode import DECODER, UnreadableImage
from trainer.store import Shards, key

LIBRARIES = {
    "decoder": DECODER,
    "torch": torch.__version__,
    "torchvision": torchvision.__version__,
    "rules": 1,  # one more when decode() or shorter_side() makes something else of the same file
}
SHARD_BYTES, SHARD_IMAGES = 64 << 20, 1024  # whichever is fewer: what one interruption can cost, and a file's size

Place = tuple[Tensor, int, tuple[int, int, int]]  # a shard's pixels, the offset therein; channel, height, width
Stored = Place | str  # or why the image could not be decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A sample that was left out, and why."""

    name: str
    reason: str


class Pixels:
    """The images that could be decoded, in the samples' order."""

    def __init__(self, kept: Sequence[tuple[Sample, str, Place]], class_count: int, multi_label: bool) -> None:
        self.names = [sample.name for sample, _, _ in kept]
        self.labels = [sample.labels for sample, _, _ in kept]
        self.digests = [digest for _, digest, _ in kept]
        self.targets = _targets(self.labels, class_count, multi_label)
        self._places = [place for _, _, place in kept]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (channel, height, width), a view of the cache: not to be written to."""
        pixels, offset, shape = self._places[index]
        return pixels[offset : offset + math.prod(shape)].view(shape)


def load(
    samples: Sequence[Sample],
    class_count: int,
    multi_label: bool,
    side_px: int,
    cache: Path,
    workers: int,
    on_image: Callable[[], None],
) -> tuple[Pixels, list[Unreadable]]:
    """Every sample's pixels with the shorter side at `side_px`, and the samples that had to be left out.

    What `cache` does not hold yet is decoded by `workers` threads. `on_image` is called after every image that was
    hashed and again after every one that was decoded; it may raise Stopped. Raises DiskFull, RunDirRefused.
    """
    known: list[tuple[Sample, str]] = []
    unreadable: list[Unreadable] = []
    with closing(ahead(_digest, samples, workers, SHARD_IMAGES)) as digests:
        for sample, digest in zip(samples, digests, strict=True):
            if isinstance(digest, UnreadableImage):
                unreadable.append(Unreadable(name=sample.name, reason=digest.reason))
            else:
                known.append((sample, digest))
            on_image()

    per_shard = min(max(SHARD_BYTES // (4 * side_px**2), 1), SHARD_IMAGES)  # 3 bytes a pixel, most photos are 4 : 3
    shards = Shards(cache / "pixels" / cache_key([digest for _, digest in known], side_px), len(known), per_shard)
    stored = _filled(shards, [sample for sample, _ in known], side_px, workers, on_image)

    kept: list[tuple[Sample, str, Place]] = []
    for (sample, digest), item in zip(known, stored, strict=True):
        if isinstance(item, str):
            unreadable.append(Unreadable(name=sample.name, reason=item))
        else:
            kept.append((sample, digest, item))
    return Pixels(kept, class_count, multi_label), unreadable


def cache_key(digests: Sequence[str], side_px: int, libraries: Mapping[str, object] = LIBRARIES) -> str:
    """The name of the cache's folder for these files, in this order, as these libraries read them."""
    return key(digests=list(digests), side_px=side_px, **libraries)


def _targets(labels: Sequence[tuple[int, ...]], class_count: int, multi_label: bool) -> Tensor:
    if not multi_label:
        return torch.tensor([label for (label,) in labels], dtype=torch.int64)
    targets = torch.zeros(len(labels), class_count)
    for row, indices in zip(targets, labels, strict=True):
        row[list(indices)] = 1
    return targets


def _digest(sample: Sample) -> str | UnreadableImage:
    try:
        return sample.digest()
    except UnreadableImage as error:
        return error


def _filled(
    shards: Shards, samples: Sequence[Sample], side_px: int, workers: int, on_image: Callable[[], None]
) -> Iterator[Stored]:
    """What is stored of each sample, after the shards that were missing have been made."""
    held = [_read(shards, shard, side_px) for shard in range(len(shards.ranges))]
    missing = [shard for shard, items in enumerate(held) if items is None]
    wanted = (samples[index] for shard in missing for index in shards.ranges[shard])
    with closing(ahead(partial(_resized, side_px=side_px), wanted, workers, shards.per_shard)) as images:
        for shard in missing:
            made = []
            for image in islice(images, len(shards.ranges[shard])):
                made.append(image)
                on_image()
            held[shard] = _write(shards, shard, made, side_px)
    return chain.from_iterable(items for items in held if items is not None)


def _resized(sample: Sample, side_px: int) -> Tensor | UnreadableImage:
    try:
        return transforms.shorter_side(sample.read(), side_px).contiguous()
    except UnreadableImage as error:
        return error


def _write(shards: Shards, shard: int, images: Sequence[Tensor | UnreadableImage], side_px: int) -> list[Stored]:
    """Store the shard, unless another try may read more of it, and give what it holds."""
    decoded = [image if isinstance(image, Tensor) else torch.empty(0, 0, 0, dtype=torch.uint8) for image in images]
    tensors = {
        "pixels": torch.cat([image.flatten() for image in decoded]),
        "shapes": torch.tensor([image.shape for image in decoded]),
    }
    failures = {str(index): image for index, image in enumerate(images) if isinstance(image, UnreadableImage)}
    reasons = {index: failure.reason for index, failure in failures.items()}
    if all(failure.lasting for failure in failures.values()):
        shards.write(shard, tensors, reasons)
        if mapped := _read(shards, shard, side_px):
            return mapped
    return _items(tensors, reasons, side_px)


def _read(shards: Shards, shard: int, side_px: int) -> list[Stored] | None:
    """What the shard holds, None where it has to be made, again if need be."""
    if (found := shards.read(shard)) is None:
        return None
    try:
        items = _items(*found, side_px)
    except (KeyError, ValueError):
        return None
    return items if len(items) == len(shards.ranges[shard]) else None


def _items(tensors: dict[str, Tensor], reasons: dict[str, str], side_px: int) -> list[Stored]:
    """Raises KeyError or ValueError where the file is none of ours."""
    pixels, shapes = tensors["pixels"], tensors["shapes"]
    if pixels.dtype != torch.uint8 or pixels.dim() != 1 or shapes.dtype != torch.int64 or shapes.shape[1:] != (3,):
        raise ValueError("other tensors than _write() makes")
    items: list[Stored] = []
    offset = 0
    for index, (channels, height, width) in enumerate(shapes.tolist()):
        if str(index) in reasons:
            items.append(reasons[str(index)])
        elif channels != 3 or min(height, width) != side_px:
            raise ValueError("an image of another size")
        else:
            items.append((pixels, offset, (channels, height, width)))
            offset += channels * height * width
    if offset != len(pixels):
        raise ValueError("more or fewer pixels than the shapes say")
    return items
