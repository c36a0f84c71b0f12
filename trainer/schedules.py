"""Learning rates as pure functions of progress: no scheduler object, so no scheduler state to save or restore wrongly.

SGDR: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (arXiv:1608.03983), eq. 5 with a floor
of 0, applied per batch as in fast.ai 0.7, but without its undocumented warm-up over the first twentieth of the first
cycle.
"""

import math
from collections.abc import Callable


def cosine(progress: float) -> float:
    """The share of the highest rate at `progress` (0 to 1) through a cycle: 1 at its start, 0 at its end."""
    return (1 + math.cos(math.pi * progress)) / 2


def one_cycle(progress: float) -> float:
    """The share of the highest rate at `progress` (0 to 1): up from 1/25 over the first quarter, then down to 1e-5.

    Smith & Topin, "Super-Convergence" (arXiv:1708.07120), with both halves along a cosine and the numbers of fastai 2's
    `fit_one_cycle` (callback/schedule.py).
    """
    if progress < 0.25:
        return 1 - (1 - 1 / 25) * cosine(progress / 0.25)
    return 1e-5 + (1 - 1e-5) * cosine((progress - 0.25) / 0.75)


SHAPES: dict[str, Callable[[float], float]] = {"sgdr": cosine, "one_cycle": one_cycle}


def share(schedule: str, step: int, first_cycle_steps: int, cycle_mult: int) -> float:
    """The share of the highest rate at `step` of a stage; each cycle is `cycle_mult` times as long as the one before.

    The last step of a cycle of T steps is at progress (T - 1) / T: the floor is approached, never used.
    """
    length = first_cycle_steps
    while step >= length:
        step -= length
        length *= cycle_mult
    return SHAPES[schedule](step / length)


def exponential(progress: float, start: float, end: float) -> float:
    """The rate at `progress` (0 to 1) of the learning-rate finder's sweep: each step multiplies it by as much."""
    return start * math.exp(math.log(end / start) * progress)


def cycle_starts(cycles: int, cycle_len: int, cycle_mult: int) -> list[int]:
    """The epoch, counted from 0 within its stage, at which each cycle begins."""
    return [total_epochs(cycle, cycle_len, cycle_mult) for cycle in range(cycles)]


def total_epochs(cycles: int, cycle_len: int, cycle_mult: int) -> int:
    """The epochs in `cycles` cycles: (3, 1, 1) is 3, (3, 1, 2) is 7, (2, 4, 1) is 8."""
    return sum(cycle_len * cycle_mult**cycle for cycle in range(cycles))


def group_rates(lr: float | tuple[float, ...], spread: float, group_count: int) -> tuple[float, ...]:
    """The highest rate of each layer group, first layers first.

    One number is the head's: every group before it gets `spread` times less than the next. A tuple is taken as it is.
    """
    if isinstance(lr, tuple):
        return lr
    return tuple(lr / spread ** (group_count - 1 - group) for group in range(group_count))
