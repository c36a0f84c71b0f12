"""Randomness is addressed, not streamed: each draw comes from a generator seeded by its place in the run.

So nothing random has to be saved to resume exactly, in mid-epoch too, and the number of workers changes nothing.
"""

import random
from enum import IntEnum

import numpy as np
import torch


class Draw(IntEnum):
    """What is drawn: the first number of an address, so that two kinds of draw at one place never share a generator."""

    ORDER = 1
    AUGMENTATION = 2
    STEP = 3
    MIXUP = 4
    VIEW = 5


# The learning-rate finder's place among a stage's epochs: no epoch has this number, so the sweep leaves no trace.
FINDER_EPOCH = 2**32 - 1


def generator(draw: Draw, *address: int) -> np.random.Generator:
    """The generator that belongs to (seed, stage, epoch …) for this kind of draw."""
    return np.random.default_rng((draw, *address))


def view(seed: int, digest: str, number: int) -> np.random.Generator:
    """The generator of an image's test-time view: the file's SHA-256 stands for it, wherever it lies."""
    return generator(Draw.VIEW, seed, int(digest, 16), number)


def epoch_order(count: int, seed: int, stage: int, epoch: int) -> list[int]:
    """The training images' indices in the order in which this epoch shows them."""
    order: list[int] = generator(Draw.ORDER, seed, stage, epoch).permutation(count).tolist()
    return order


def seed_step(seed: int, stage: int, epoch: int, batch: int, rank: int) -> None:
    """Seed torch's own generators (dropout draws from them), on every device, before a process's share of a batch."""
    torch.manual_seed(int(generator(Draw.STEP, seed, stage, epoch, batch, rank).integers(2**63)))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, for the initial weights and for libraries that draw without asking."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
