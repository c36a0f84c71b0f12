"""Randomness is addressed, not streamed: each draw comes from a generator seeded by its place in the run.

So nothing random has to be saved to resume exactly, and the number of workers changes nothing.
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


def generator(draw: Draw, *address: int) -> np.random.Generator:
    """The generator that belongs to (seed, stage, epoch …) for this kind of draw."""
    return np.random.default_rng((draw, *address))


def epoch_order(count: int, seed: int, stage: int, epoch: int) -> list[int]:
    """The training images' indices in the order in which this epoch shows them."""
    order: list[int] = generator(Draw.ORDER, seed, stage, epoch).permutation(count).tolist()
    return order


def seed_epoch(seed: int, stage: int, epoch: int) -> None:
    """Seed torch's own generators (dropout draws from them), on every device."""
    torch.manual_seed(int(generator(Draw.STEP, seed, stage, epoch).integers(2**63)))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, for the initial weights and for libraries that draw without asking."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
