"""Find or launch, start, wait, release. The only code that waits on a provider.

Order is everything here: the record is on disk before the launch, and whoever may have to release a machine says so
before it exists.
"""

from gpuops.lifecycle.clock import Clock, Tell, tried_again
from gpuops.lifecycle.launch import launch
from gpuops.lifecycle.plan import Limits, Plan, existing, find_one, locked, plan, usable
from gpuops.lifecycle.release import Release
from gpuops.lifecycle.waits import (
    seen_again,
    stop,
    terminate,
    wait_until_back,
    wait_until_reached,
    wait_until_running,
    wait_until_shown,
)

__all__ = [
    "Clock",
    "Limits",
    "Plan",
    "Release",
    "Tell",
    "existing",
    "find_one",
    "launch",
    "locked",
    "plan",
    "seen_again",
    "stop",
    "terminate",
    "tried_again",
    "usable",
    "wait_until_back",
    "wait_until_reached",
    "wait_until_running",
    "wait_until_shown",
]
