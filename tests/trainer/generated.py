"""Sets of small painted pictures whose best possible score is known before anything is trained on them.

What is to be seen in a picture is drawn first, its written labels from that, with errors at known rates. Even who sees
everything cannot foresee the errors, so the best score is below 1, and it follows from the rates alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE_PX = 40

Subsets = NDArray[np.int64]  # (subset, label), each 0 or 1
Scene = Callable[[frozenset[str], np.random.Generator], Image.Image]


class Draw(IntEnum):
    """What is drawn, in a picture's address (seed, draw, index): one kind's draws leave the others' as they were."""

    THINGS = 1
    ERRORS = 2
    SCENE = 3
    SHUFFLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedSet:
    """Pictures in which each label's thing is there or not, independently of the others."""

    labels: tuple[str, ...]
    there: float  # the probability of each thing
    missed: float  # the probability that a thing which is there is not written down
    invented: float  # the probability that one which is not there is
    scene: Scene  # the picture of these things, RGB, SIDE_PX square

    def write(self, root: Path, count: int, seed: int, shuffled: bool = False) -> None:
        """Write `count` pictures as PNG, and labels.csv; shuffled, each has the labels of a picture drawn at random."""
        root.mkdir(parents=True)
        written: list[tuple[str, ...]] = []
        for index in range(count):
            things = _generator(seed, Draw.THINGS, index).random(len(self.labels)) < self.there
            error = _generator(seed, Draw.ERRORS, index).random(len(self.labels))
            noted = np.where(things, error >= self.missed, error < self.invented)
            seen = frozenset(label for label, is_there in zip(self.labels, things, strict=True) if is_there)
            self.scene(seen, _generator(seed, Draw.SCENE, index)).save(root / f"{index:04}.png")
            written.append(tuple(label for label, is_noted in zip(self.labels, noted, strict=True) if is_noted))
        order = _generator(seed, Draw.SHUFFLE, 0).permutation(count) if shuffled else range(count)
        rows = [f"{index:04}.png,{' '.join(written[of])}" for index, of in enumerate(order)]
        (root / "labels.csv").write_text("\n".join(["image,labels", *rows]) + "\n")

    def best_f2(self) -> float:
        """The expected F2 (of each picture, averaged) of the best of all rules that go by the picture, exactly.

        A picture shows its things x, a subset of the labels, and nothing else that bears on the written labels y. They
        are independent given x: P(y | x) is a product of 1 - missed or missed for what is there, invented or
        1 - invented for what is not. So a rule is a choice of a subset g for each x, and the best one takes the g of
        the highest sum over y of P(y | x) F2(g, y); the best score is the mean of these over P(x). All three run over
        the 2^n subsets, F2(g, y) = 5 |g and y| / (|g| + 4 |y|), and 1 where both are empty.

        A threshold on each label's own probability is a rule, so it reaches no more: between `invented` and
        1 - missed it gives g = x, which is the best choice wherever both rates are small.
        """
        things = _subsets(len(self.labels))
        expected = self._written_given(things) @ _f2(things, things).T  # (x, g)
        return float(self._probability(things, self.there) @ expected.max(axis=1))

    def chance_f2(self) -> tuple[float, float]:
        """The expected F2 of the best rule that does not go by the picture, and its deviation from one to the next.

        Such a rule is a single subset g: the best by the sum over x and y of P(x) P(y | x) F2(g, y). Labels that were
        shuffled are independent of the pictures, so no rule can do better on them.
        """
        things = _subsets(len(self.labels))
        written = self._probability(things, self.there) @ self._written_given(things)  # P(y)
        scores = _f2(things, things)
        best = scores[int((scores @ written).argmax())]
        mean = float(best @ written)
        return mean, float(np.sqrt((best - mean) ** 2 @ written))

    def written_share(self) -> float:
        """The expected share of pictures that are labelled with a thing."""
        return self.there * (1 - self.missed) + (1 - self.there) * self.invented

    def _written_given(self, things: Subsets) -> NDArray[np.float64]:
        """P(y | x): (x, y)."""
        return np.stack([self._probability(things, np.where(row, 1 - self.missed, self.invented)) for row in things])

    @staticmethod
    def _probability(subsets: Subsets, of_each: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability of each subset, given that of each label."""
        return np.where(subsets, of_each, 1 - np.asarray(of_each)).prod(axis=1)


def _subsets(count: int) -> Subsets:
    return np.array(list(product((0, 1), repeat=count)))


def _f2(given: Subsets, written: Subsets) -> NDArray[np.float64]:
    """(given, written)."""
    total = given.sum(axis=1)[:, None] + 4 * written.sum(axis=1)[None]
    return np.where(total > 0, 5 * (given @ written.T) / np.maximum(total, 1), 1.0)


def _generator(seed: int, draw: Draw, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, draw, index))


def _side_on(things: frozenset[str], random: np.random.Generator) -> Image.Image:
    """A meadow below a sky, as a photographer sees it, lit from the left or the right."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), _near((150, 185, 220), random))
    draw = ImageDraw.Draw(image)
    horizon = int(random.integers(20, 28))
    draw.rectangle((0, horizon, SIDE_PX, SIDE_PX), fill=_near((140, 150, 90), random))
    left = [int(place) for place in 4 + 15 * random.permutation(2) + random.integers(0, 6, 2)]
    if "balloon" in things:
        x, y = (int(place) for place in random.integers((6, 4), (27, 8)))
        draw.ellipse((x, y, x + 7, y + 8), fill=_near((210, 50, 50), random))
        draw.line((x + 3, y + 8, x + 3, y + 11), fill=(60, 60, 60))
    if "house" in things:
        x = left[0]
        draw.rectangle((x, horizon - 4, x + 10, horizon + 5), fill=_near((230, 215, 190), random))
        roof = ((x - 2, horizon - 4), (x + 5, horizon - 10), (x + 12, horizon - 4))
        draw.polygon(roof, fill=_near((120, 70, 50), random))
    if "tree" in things:
        x = left[1]
        draw.rectangle((x + 4, horizon, x + 6, horizon + 5), fill=(90, 60, 40))
        crown = ((x, horizon + 1), (x + 5, horizon - 13), (x + 10, horizon + 1))
        draw.polygon(crown, fill=_near((30, 90, 40), random))
    if "fence" in things:
        for x in range(int(random.integers(0, 4)), SIDE_PX, 4):
            draw.line((x, horizon + 6, x, horizon + 11), fill=(245, 245, 240))
    return _grainy(image, random, light=float(random.uniform(-0.4, 0.4)))


def _from_above(things: frozenset[str], random: np.random.Generator) -> Image.Image:
    """Fields as a satellite sees them: one of the eight turns and mirrorings of what is drawn, all equally likely."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), _near((165, 155, 110), random))
    draw = ImageDraw.Draw(image)
    if "river" in things:
        x, bend = (int(place) for place in random.integers((12, -8), (28, 9)))
        draw.line(((x, -1), (x + bend, 20), (x, SIDE_PX)), fill=_near((50, 90, 150), random), width=5)
    if "road" in things:
        y, slope = (int(place) for place in random.integers((10, -6), (30, 7)))
        draw.line(((-1, y), (SIDE_PX, y + slope)), fill=(225, 225, 220), width=2)
    if "forest" in things:
        x, y = (int(place) for place in random.integers(4, 22, 2))
        for dx, dy in random.integers(0, 12, (40, 2)):
            draw.ellipse((x + dx, y + dy, x + dx + 2, y + dy + 2), fill=_near((35, 80, 40), random))
    if "village" in things:
        x, y = (int(place) for place in random.integers(5, 23, 2))
        for dx, dy in product((0, 5, 10), (0, 6)):  # each roof with its shadow, which no turn leaves where it was
            draw.rectangle((x + dx, y + dy + 3, x + dx + 3, y + dy + 4), fill=(50, 45, 45))
            draw.rectangle((x + dx, y + dy, x + dx + 3, y + dy + 2), fill=_near((200, 80, 60), random))
    quarters, mirrored = (int(choice) for choice in random.integers((0, 0), (4, 2)))
    pixels = np.rot90(np.asarray(_grainy(image, random)), quarters)
    return Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels))


def _near(colour: tuple[int, int, int], random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(shade) for shade in np.array(colour) + random.integers(-15, 16, 3))
    return red, green, blue


def _grainy(image: Image.Image, random: np.random.Generator, light: float = 0.0) -> Image.Image:
    """The image with noise; on its right side it is brighter by this share, on its left darker."""
    across = 1 + light * np.linspace(-1, 1, SIDE_PX)[None, :, None]
    pixels = np.asarray(image) * across + random.normal(0, 8, (SIDE_PX, SIDE_PX, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


SETS: Mapping[str, GeneratedSet] = {
    "multi_label": GeneratedSet(
        labels=("balloon", "fence", "house", "tree"), there=0.3, missed=0.10, invented=0.03, scene=_side_on
    ),
    "satellite": GeneratedSet(
        labels=("forest", "river", "road", "village"), there=0.3, missed=0.06, invented=0.04, scene=_from_above
    ),
}
