"""Keeps the run: a checkpoint now and then between two steps, and at once where the run is asked to stop."""

import signal
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from trainer import checkpoint
from trainer.errors import Stopped
from trainer.rundir import RunDir
from trainer.state import State

NETWORK, STEP = "network/", "step/"


class Keeper:
    """The only writer of checkpoints. `agreed` tells whether any of several processes is asked to stop."""

    def __init__(
        self,
        rundir: RunDir,
        every_s: float,
        check_stop: Callable[[], None],
        agreed: Callable[[bool], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rundir = rundir
        self._every_s = every_s
        self._check_stop = check_stop
        self._agreed = agreed
        self._clock = clock
        self._kept_at = clock()
        self._module: nn.Module | None = None
        self._identity: dict[str, Any] = {}

    def of(self, module: nn.Module, identity: dict[str, Any]) -> None:
        """From now on there is a network to keep. `identity` says what it is a run of; it is compared on resuming."""
        self._module = module
        self._identity = identity

    def beat(self) -> None:
        """Between two pieces of work that need no checkpoint. Raises Stopped where the run is asked to end."""
        self._rundir.beat()
        self._check_stop()

    def after_step(self, state: Callable[[], State]) -> None:
        """Between two steps, after which the run is at `state()`. Raises Stopped, with the checkpoint on disk."""
        self._rundir.beat()
        stopped: Stopped | None = None
        try:
            self._check_stop()
        except Stopped as asked:
            stopped = asked
        if self._agreed(stopped is not None):
            self.save(state())
            raise stopped or Stopped(signal.SIGTERM)
        if self._clock() - self._kept_at >= self._every_s:
            self.save(state())

    def save(self, state: State) -> None:
        """Write the checkpoint. Raises DiskFull, RunDirRefused."""
        assert self._module is not None
        values = {
            "state": state.values(),
            "metrics_bytes": self._rundir.metrics.stat().st_size,
            "identity": self._identity,
        }
        tensors = checkpoint.under(NETWORK, self._module.state_dict())
        checkpoint.write(self._rundir.checkpoint, values, tensors | checkpoint.under(STEP, state.step_tensors))
        self._kept_at = self._clock()
