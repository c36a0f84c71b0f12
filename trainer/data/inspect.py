"""What is in a set of images, before anything is trained on it: counts, sizes, broken files, and the same image twice.

Two images are nearly the same where 16×16 grey miniatures of them, whatever their shape, correlate by .99 or more. Of
the 2,002 photographs of dogscats one pair does, a re-encoded photograph (.9995); the next, two dogs in white frames,
has .91. Of 150 of them, copies in JPEG of quality 10, at half size, stretched or grey were all found, at an eighth of
the size or cut by 1 % on every side 99 %, brightened by 30 % 72 %, cut by 2 % 37 %. Mirrored copies are not looked for,
and images of less than 32 px are compared byte by byte alone: of 1,797 digits of 8 px, nine pairs by different hands
have .99.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from trainer.data import Sample, Samples, find
from trainer.data.ahead import ahead
from trainer.data.pixels import Pixels, Unreadable
from trainer.decode import UnreadableImage
from trainer.recipe import DataOptions

NEARLY = 0.99
MINIATURE_PX = 16
LEAST_PX = 32  # the shorter side from which a miniature says enough
ROWS = 512  # of the correlation matrix at a time: 40 MB for 20,000 images
SHOWN = 20  # pairs and files of a kind that are printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two files with the same image."""

    first: str
    second: str
    exact: bool  # the files are equal byte for byte
    labels_differ: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found in a set."""

    samples: Samples
    sizes: tuple[tuple[int, int], ...]  # (width, height) px of the readable images, upright, by area
    unreadable: tuple[Unreadable, ...]
    pairs: dict[tuple[str, str], list[Pair]]  # by the parts that they lie in


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is kept of one image."""

    name: str
    labels: tuple[int, ...]
    digest: str
    size: tuple[int, int]  # width, height
    miniature: Tensor  # uint8 (3, MINIATURE_PX, MINIATURE_PX)


def run(source: str, options: DataOptions, workers: int) -> list[str]:
    """The lines that `python -m trainer data` prints. Raises DataRefused."""
    return lines(inspect(find(source, options), workers))


def inspect(samples: Samples, workers: int) -> Findings:
    """Look at every image of every part, by that many threads.

    Of the images like one image, each part contributes the one that is most like it: n equal images make n - 1 pairs.
    """
    looks: dict[str, list[Look]] = {}
    unreadable: list[Unreadable] = []
    for part, members in samples.parts.items():
        with closing(ahead(_look, members, workers, 2 * workers)) as outcomes:
            seen = list(outcomes)
        looks[part] = [look for look in seen if isinstance(look, Look)]
        unreadable += [failure for failure in seen if isinstance(failure, Unreadable)]
    names = list(looks)
    places = [(earlier, later) for index, later in enumerate(names) for earlier in names[: index + 1]]
    return Findings(
        samples=samples,
        sizes=tuple(
            sorted((look.size for part in looks.values() for look in part), key=lambda size: size[0] * size[1])
        ),
        unreadable=tuple(unreadable),
        pairs={place: _pairs(looks[place[0]], looks[place[1]]) for place in places},
    )


def across_the_split(train: Pixels, valid: Pixels) -> list[Pair]:
    """For each validation image that is also a training image, exactly or nearly, that pair; from cached pixels."""
    return _pairs(_of_pixels(train), _of_pixels(valid))


def lines(findings: Findings) -> list[str]:
    """The findings for a person to read."""
    samples = findings.samples
    label = "any number of labels" if samples.multi_label else "one label"
    said = [f"{len(samples.classes)} classes, {label} per image ({samples.why})", *_counts(samples)]
    if findings.sizes:
        named = zip(("smallest", "median", "largest"), (0, len(findings.sizes) // 2, -1), strict=True)
        said.append("sizes: " + ", ".join(f"{name} {'×'.join(map(str, findings.sizes[at]))} px" for name, at in named))
    said += _some("ignored", samples.ignored)
    said += _some("unreadable", [f"{image.name}: {image.reason}" for image in findings.unreadable])
    for (earlier, later), pairs in findings.pairs.items():
        where = f"within {later}" if earlier == later else f"in {earlier} and in {later}"
        said += _some(f"the same image twice {where}", [describe(pair) for pair in pairs])
    return said


def describe(pair: Pair) -> str:
    """The pair in one line."""
    labels = ", LABELS DIFFER" if pair.labels_differ else ""
    return f"{pair.first} and {pair.second} ({'the same file' if pair.exact else 'nearly the same'}{labels})"


def _look(sample: Sample) -> Look | Unreadable:
    try:
        image = sample.read()
        return Look(
            name=sample.name,
            labels=sample.labels,
            digest=sample.digest(),
            size=(image.shape[-1], image.shape[-2]),
            miniature=_miniature(image),
        )
    except UnreadableImage as error:
        return Unreadable(name=sample.name, reason=error.reason)


def _of_pixels(pixels: Pixels) -> list[Look]:
    return [
        Look(
            name=pixels.names[index],
            labels=pixels.labels[index],
            digest=pixels.digests[index],
            size=(image.shape[-1], image.shape[-2]),
            miniature=_miniature(image),
        )
        for index, image in ((index, pixels[index]) for index in range(len(pixels)))
    ]


def _miniature(image: Tensor) -> Tensor:
    small: Tensor = F.resize(image, [MINIATURE_PX, MINIATURE_PX], antialias=True)
    return small


def _pairs(earlier: Sequence[Look], later: Sequence[Look]) -> list[Pair]:
    """For each of the later images the most alike of the earlier ones; within one list, of those before it."""
    if not earlier or not later:
        return []
    within = earlier is later
    equal = {} if within else {look.digest: look for look in reversed(earlier)}
    pairs: list[Pair] = []
    for second, (most_alike, correlation) in zip(later, _most_alike(earlier, later), strict=True):
        first = equal.get(second.digest)
        exact = first is not None
        if first is None and correlation >= NEARLY:
            first = earlier[most_alike]
        if first is not None:
            differ = first.labels != second.labels
            pairs.append(Pair(first=first.name, second=second.name, exact=exact, labels_differ=differ))
        if within:
            equal.setdefault(second.digest, second)
    return pairs


def _most_alike(earlier: Sequence[Look], later: Sequence[Look]) -> Iterator[tuple[int, float]]:
    """For each of the later images the index of the most alike earlier one, and their miniatures' correlation."""
    against, rows = _centred(earlier), _centred(later)
    for start in range(0, len(later), ROWS):
        correlation = rows[start : start + ROWS] @ against.T
        if earlier is later:
            correlation = correlation.tril(start - 1)
        best = correlation.max(dim=1)
        yield from zip(best.indices.tolist(), best.values.tolist(), strict=True)


def _centred(looks: Sequence[Look]) -> Tensor:
    """The miniatures in grey, float32 (image, MINIATURE_PX²), each with mean 0 and norm 1; of one shade alone: 0."""
    grey = F.rgb_to_grayscale(torch.stack([look.miniature for look in looks]).float()).flatten(1)
    centred = grey - grey.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    large = torch.tensor([[min(look.size) >= LEAST_PX] for look in looks])
    # Less than one shade of 255 of deviation is rounding, in which two blank images may well agree.
    return torch.where(large & (norm > MINIATURE_PX), centred / norm, 0)


def _counts(samples: Samples) -> list[str]:
    """A table of the images of each class in each part."""
    parts = samples.parts
    count = {part: Counter(label for sample in members for label in sample.labels) for part, members in parts.items()}
    rows = [("", *parts)]
    rows += [(name, *(str(count[part][label]) for part in parts)) for label, name in enumerate(samples.classes)]
    rows.append(("images", *(str(len(members)) for members in parts.values())))
    width = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]


def _some(title: str, items: Sequence[str]) -> list[str]:
    shown = [f"  {item}" for item in items[:SHOWN]]
    return [
        f"{title}: {len(items) or 'none'}",
        *shown,
        *([f"  and {len(items) - SHOWN} more"] if len(items) > SHOWN else []),
    ]
