"""Machine-hours as values: stretches of a machine's running, a run's shares of them, and what they come to in USD.

A *stretch* is one start of one machine: from the provider's time of the start to the best that is known of its end.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from gpuops import cost

EVER = datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc)
"""Since and until, of all time."""


class Ending(enum.Enum):
    """How the end of a stretch is known: said by the provider, by the machine's own log, or only seen to be over."""

    SAID = "said"
    LOGGED = "logged"
    SEEN = "seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Machine-hours and what they cost. `unpriced_hours` are those of an unknown price: part of `hours`, not of `usd`.

    `is_at_most`: an end is not known, only that it had come by a certain time.
    """

    hours: float = 0.0
    usd: float = 0.0
    unpriced_hours: float = 0.0
    is_at_most: bool = False

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            hours=self.hours + other.hours,
            usd=self.usd + other.usd,
            unpriced_hours=self.unpriced_hours + other.unpriced_hours,
            is_at_most=self.is_at_most or other.is_at_most,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One start of one machine. `started` is by the provider's clock; `ended` is None while it runs."""

    machine_id: str
    name: str
    provider: str
    region: str
    type: str
    price_usd_per_hour: float | None
    started: datetime
    ended: datetime | None = None
    ending: Ending | None = None
    reason: str = ""

    def spending(self, since: datetime, until: datetime, *, now: datetime) -> Spending:
        """What of it falls between the two times. EC2 bills by the second, and a minute at least for every start."""
        return self._between(max(self.started, since), min(self._billed_until(now), until))

    def share(
        self, began: datetime, ended: datetime | None, since: datetime, until: datetime, now: datetime
    ) -> Spending:
        """The same, of what was a run's: one that lasted to the end of the stretch has all of its last minute."""
        if ended is None or ended >= (self.ended or now):
            return self._between(max(self.started, began, since), min(self._billed_until(now), until))
        return replace(self._between(max(self.started, began, since), min(ended, until)), is_at_most=False)

    def overlaps(self, started: datetime, ended: datetime) -> bool:
        return self.started < ended and (self.ended is None or started < self.ended)

    @property
    def is_settled(self) -> bool:
        """True when its end is known, and not only bounded."""
        return self.ending in {Ending.SAID, Ending.LOGGED}

    def _billed_until(self, now: datetime) -> datetime:
        return max(self.ended or now, self.started + timedelta(seconds=cost.SHORTEST_S))

    def _between(self, since: datetime, until: datetime) -> Spending:
        hours = max(0.0, (until - since).total_seconds() / 3600)
        price = self.price_usd_per_hour
        return Spending(
            hours=hours,
            usd=hours * (price or 0.0),
            unpriced_hours=hours if price is None else 0.0,
            is_at_most=self.ending is Ending.SEEN and hours > 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A run's part of a machine's time: of the stretch that had `started` when the run claimed it, and of no later one,
    as no job outlives its machine's stop. `ended` is None until the machine is released.
    """

    machine_id: str
    machine: str
    type: str
    started: datetime | None
    began: datetime
    ended: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHours:
    """A run and its shares of machines: several, if it was taken up again after a stop."""

    run_id: str
    recipe: str
    recipe_digest: str
    shares: tuple[Share, ...]
    has_succeeded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Everything that the ledger has, oldest first; `damaged` is the number of lines that can't be read."""

    stretches: tuple[Stretch, ...]
    runs: tuple[RunHours, ...]
    damaged: int

    def of(self, machine_id: str) -> list[Stretch]:
        return [stretch for stretch in self.stretches if stretch.machine_id == machine_id]

    def of_run(self, run: RunHours, since: datetime, until: datetime, *, now: datetime) -> Spending:
        """What of the run's spending falls between the two times."""
        spent = Spending()
        for share in run.shares:
            found = [stretch for stretch in self.of(share.machine_id) if stretch.started == share.started]
            if found:
                spent += found[0].share(share.began, share.ended, since, until, now)
            else:  # a machine of whose start the provider says nothing
                seconds = (min(share.ended or now, until) - max(share.began, since)).total_seconds()
                spent += Spending(hours=max(0.0, seconds / 3600), unpriced_hours=max(0.0, seconds / 3600))
        return spent
