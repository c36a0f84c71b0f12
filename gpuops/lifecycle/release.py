"""Who may have to stop a machine says so before it exists."""

from __future__ import annotations

import contextlib

from gpuops import cost
from gpuops.errors import GpuopsError
from gpuops.lifecycle import waits
from gpuops.lifecycle.clock import Clock, Tell, polls, tried_again
from gpuops.machine import Machine
from gpuops.providers import Provider

_LISTED_WITHIN_S = 15.0


class Release:
    """Registered before a launch or a start: on any exit before `keep`, the machine is stopped and its disk kept."""

    def __init__(self, provider: Provider, name: str, *, clock: Clock, tell: Tell) -> None:
        self.clock = clock
        self.tell = tell
        self._provider = provider
        self._name = name
        self._machine: Machine | None = None
        self._host_key: str | None = None
        self.kept = False

    def expects(self, host_key: str | None) -> None:
        """A launch is under way whose machine would bear this host key; None: nothing will come of it."""
        self._host_key = host_key

    def owns(self, machine: Machine) -> None:
        """This is the machine to stop."""
        self._machine = machine

    def keep(self) -> None:
        """It is to go on running: the command did what it was asked to, or the machine is another's."""
        self.kept = True

    def __enter__(self) -> Release:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.kept or error is None:
            return
        try:
            left = self._stop()
        except GpuopsError as failure:
            costs = f", at {cost.rate(self._machine.price_usd_per_hour)}" if self._machine else ""
            left = f"{self._name} could not be stopped and may be running{costs}: {failure.what}"
        except BaseException:
            self._say(f"{self._name} may still be running, and billing: see `gpuops status`")
            raise
        if left:
            self._say(left)
        if isinstance(error, GpuopsError):
            error.left_behind = " ".join(filter(None, (error.left_behind, left)))

    def _stop(self) -> str:
        if self._machine:
            machines = [self._machine]
        elif self._host_key:
            # By its key, not only by its name: another computer may have launched one of that name meanwhile.
            machines = self._launched(self._host_key)
            if not machines:
                return (
                    f"A launch of {self._name} was under way, and no machine of it is seen: one may run, and stops by "
                    "itself at its deadline."
                )
        else:
            machines = []
        for machine in machines:
            self._say(f"Stopping {machine.name} ({machine.id})")
            waits.stop(self._provider, machine, clock=self.clock, may_be_starting=True)
        return " ".join(f"{m.name} is stopped; its disk costs {cost.disk(m)}." for m in machines)

    def _launched(self, host_key: str) -> list[Machine]:
        """What came of a launch whose answer was lost; a new machine may take a while to be listed."""
        for _ in polls(self.clock, _LISTED_WITHIN_S):
            found = tried_again(self.clock, lambda: self._provider.find(self._name)).machines
            if machines := [machine for machine in found if machine.host_key == host_key]:
                return machines
        return []

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be what has gone, and the machine is to be stopped then
            self.tell(text)
