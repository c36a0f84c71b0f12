"""Time and chance, as arguments; and how to wait with them: poll, or try again after a pause."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TypeVar

from gpuops.errors import VendorUnreachable

Tell = Callable[[str], None]
_Answer = TypeVar("_Answer")

_TRIES = 5
_TRY_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """`chance` gives numbers from 0 to 1, for pauses that two computers don't make in step."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = field(default=lambda: datetime.now(timezone.utc))
    chance: Callable[[], float] = random.random


def polls(clock: Clock, within_s: float, *, first_s: float = 0.5, longest_s: float = 1.0) -> Iterator[None]:
    """Turns to look, `first_s` apart at first and up to `longest_s` later, until the time is up."""
    deadline = clock.monotonic() + within_s
    pause_s = first_s
    while True:
        yield
        if clock.monotonic() + pause_s > deadline:
            return
        clock.sleep(pause_s)
        pause_s = min(longest_s, pause_s * 1.3)


def tried_again(clock: Clock, call: Callable[[], _Answer]) -> _Answer:
    """What `call` answers, asked again where the vendor was too busy or silent: only for calls that may be repeated.

    Exponential backoff with full jitter (aws.amazon.com/blogs/architecture, "Exponential Backoff And Jitter"): the
    pause is drawn between nothing and 1, 2, 4, 8 s. Raises the last `VendorUnreachable`.
    """
    began = clock.monotonic()
    for tried in range(1, _TRIES + 1):
        try:
            return call()
        except VendorUnreachable:
            if tried == _TRIES or clock.monotonic() - began > _TRY_WITHIN_S:
                raise
        clock.sleep(clock.chance() * 2.0 ** (tried - 1))
    raise AssertionError("the last try returns or raises")
