"""The ledger: which machine ran from when to when, at what price, and for which run. Truth of bills, not of machines.

A provider soon forgets what it has ended; this is the memory of what it said. Facts are appended to one file, a line
of JSON each, and no line is ever changed: two commands that write at once lose nothing, and a line that a power cut
has spoiled costs that line alone. What is known worse of an end gives way to what is known better, so that a bill is
never too low because nobody looked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gpuops import durable
from gpuops.errors import NewerFormat
from gpuops.machine import FORMAT, Machine, State, Uptime
from gpuops.machine_hours import EVER, Ending, Entries, RunHours, Share, Spending, Stretch

# From a provider's time of the start to the kernel's, and back up again after a reboot.
_BOOT_AT_MOST = timedelta(minutes=5)


class Ledger:
    """One file on this computer. All of it raises `NewerFormat` where a newer gpuops has written there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def seen(self, machines: Iterable[Machine], *, now: datetime, complete: bool = False) -> None:
        """Note what a provider has just said of these machines; `complete`: and there are no others.

        A start that is news is noted, and so is the end of what doesn't run any more: as the provider has it, or else
        `now` at the latest.
        """
        known = self.entries()
        facts: list[Mapping[str, object]] = []
        listed = set()
        for machine in machines:
            listed.add(machine.id)
            facts += _news(machine, known.of(machine.id), now)
        if complete:
            gone = [s for s in known.stretches if s.ended is None and s.machine_id not in listed]
            facts += [_ended(s.machine_id, s.started, max(now, s.started), Ending.SEEN) for s in gone]
        self._append(facts)

    def uptimes(self, machine: Machine, log: Iterable[Uptime], *, now: datetime) -> None:
        """Note what the machine's own log says of ends that nobody saw, and of starts from elsewhere.

        It comes from the machine: it can bring forward an end that is only bounded, and change nothing that the
        provider has said. To be called after `seen` with the same machine.
        """
        boots = sorted(log, key=lambda uptime: uptime.booted)
        facts: list[Mapping[str, object]] = []
        stretches = []
        for stretch in self.entries().of(machine.id):
            if stretch.ending is Ending.SEEN and (last := _last_boot(stretch, boots)) and last.ended:
                stretch = replace(stretch, ended=max(last.ended, stretch.started))
                facts.append(_ended(machine.id, stretch.started, last.ended, Ending.LOGGED, last.reason))
            stretches.append(stretch)
        for boot in boots:
            ended = boot.ended
            if ended and boot.booted < ended <= now and not any(s.overlaps(boot.booted, ended) for s in stretches):
                facts.append(_logged(machine, boot.booted, ended, boot.reason))
        self._append(facts)

    def run_began(self, run_id: str, recipe: str, recipe_digest: str, machine: Machine, *, at: datetime) -> None:
        """This run claims the machine from now on (once more, if it is taken up again)."""
        self.seen([machine], now=at)
        launched = machine.launched_at
        fact = {
            "event": "run-began",
            "run_id": run_id,
            "recipe": recipe,
            "recipe_digest": recipe_digest,
            "machine_id": machine.id,
            "machine": machine.name,
            "type": machine.type,
            "started": launched.isoformat() if launched else None,
            "began": at.isoformat(),
        }
        self._append([fact])

    def run_ended(self, run_id: str, *, at: datetime, succeeded: bool = False) -> None:
        """Its machine is released or stopped. Estimates are made from runs that succeeded."""
        self._append([{"event": "run-ended", "run_id": run_id, "ended": at.isoformat(), "succeeded": succeeded}])

    def entries(self) -> Entries:
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        book = _Book()
        damaged = sum(not book.add(line, self.path) for line in lines if line)
        return book.entries(damaged)

    def spent_usd(self, run_id: str, now: datetime) -> float | None:
        """What a run has cost so far, all its shares together; None where a price isn't known."""
        known = self.entries()
        spent = sum((known.of_run(r, *EVER, now=now) for r in known.runs if r.run_id == run_id), start=Spending())
        return None if spent.unpriced_hours else spent.usd

    def hours_before(self, recipe: str, recipe_digest: str, machine_type: str) -> list[float]:
        """How long earlier runs took that succeeded on such a machine: of this very recipe, else of one of its name."""
        known = self.entries()
        same, namesakes = [], []
        for run in known.runs:
            ended = run.shares[-1].ended
            if ended and run.has_succeeded and run.shares[-1].type == machine_type:
                hours = known.of_run(run, *EVER, now=ended).hours
                if run.recipe_digest == recipe_digest:
                    same.append(hours)
                elif run.recipe == recipe:
                    namesakes.append(hours)
        return same or namesakes

    def _append(self, facts: Iterable[Mapping[str, object]]) -> None:
        data = b"".join(json.dumps({"format": FORMAT, **fact}).encode() + b"\n" for fact in facts)
        if data:
            durable.append(self.path, data)


class _Book:
    """Lines, read one after the other into what they come to."""

    def __init__(self) -> None:
        self._stretches: dict[tuple[str, datetime], Stretch] = {}
        self._logged: dict[tuple[str, datetime], Stretch] = {}
        self._runs: dict[str, RunHours] = {}

    def add(self, line: bytes, path: Path) -> bool:
        """False for a line that can't be read. Raises `NewerFormat`."""
        try:
            fact = json.loads(line)
            if int(fact["format"]) > FORMAT:
                raise NewerFormat(f"{path} was written by a newer gpuops.", next_step="Upgrade gpuops, then try again.")
            self._take(fact)
        except (ValueError, TypeError, LookupError):
            return False
        return True

    def entries(self, damaged: int) -> Entries:
        said = list(self._stretches.values())
        # What a machine's log has told, the provider may have come to tell too.
        logged = [
            one
            for one in self._logged.values()
            if not any(
                s.machine_id == one.machine_id and s.overlaps(one.started, one.ended or one.started) for s in said
            )
        ]
        return Entries(
            stretches=tuple(sorted((*said, *logged), key=lambda stretch: stretch.started)),
            runs=tuple(self._runs.values()),
            damaged=damaged,
        )

    def _take(self, fact: Mapping[str, Any]) -> None:
        event = fact["event"]
        if event == "started":
            self._started(_stretch(fact))
        elif event == "logged":
            stretch = replace(
                _stretch(fact), ended=_time(fact["ended"]), ending=Ending.LOGGED, reason=str(fact["reason"])
            )
            self._logged[stretch.machine_id, stretch.started] = stretch
        elif event == "ended":
            self._ended(fact)
        elif event == "run-began":
            self._run_began(fact)
        elif event == "run-ended":
            self._run_ended(fact)
        else:
            raise ValueError(event)

    def _started(self, stretch: Stretch) -> None:
        known = self._stretches.setdefault((stretch.machine_id, stretch.started), stretch)
        if known.price_usd_per_hour is None:
            known = replace(known, price_usd_per_hour=stretch.price_usd_per_hour)
        if known.ending is Ending.SEEN:  # and seen to run after all: the one who missed it looked elsewhere
            known = replace(known, ended=None, ending=None)
        self._stretches[stretch.machine_id, stretch.started] = known

    def _ended(self, fact: Mapping[str, Any]) -> None:
        key = str(fact["machine_id"]), _time(fact["started"])
        ended, ending = _time(fact["ended"]), Ending(fact["ending"])
        stretch = self._stretches.get(key)
        if stretch is None or stretch.is_settled:
            return
        if ending is not Ending.SEEN or stretch.ended is None or ended < stretch.ended:
            self._stretches[key] = replace(stretch, ended=ended, ending=ending, reason=str(fact["reason"]))

    def _run_began(self, fact: Mapping[str, Any]) -> None:
        share = Share(
            machine_id=str(fact["machine_id"]),
            machine=str(fact["machine"]),
            type=str(fact["type"]),
            started=_time(fact["started"]) if fact["started"] else None,
            began=_time(fact["began"]),
        )
        run_id = str(fact["run_id"])
        run = RunHours(
            run_id=run_id, recipe=str(fact["recipe"]), recipe_digest=str(fact["recipe_digest"]), shares=(share,)
        )
        known = self._runs.setdefault(run_id, run)
        if known is not run:
            self._runs[run_id] = replace(known, shares=(*known.shares, share), has_succeeded=False)

    def _run_ended(self, fact: Mapping[str, Any]) -> None:
        run = self._runs.get(str(fact["run_id"]))
        if run and run.shares[-1].ended is None:
            *earlier, last = run.shares
            shares = (*earlier, replace(last, ended=_time(fact["ended"])))
            self._runs[run.run_id] = replace(run, shares=shares, has_succeeded=fact["succeeded"] is True)


def _news(machine: Machine, known: list[Stretch], now: datetime) -> Iterator[Mapping[str, object]]:
    """What this sight of the machine adds to what is known of it."""
    launched, stopped = machine.launched_at, machine.stopped_at
    for stretch in known:
        was_restarted = launched is not None and launched > stretch.started
        is_older_news = launched is not None and launched < stretch.started
        if stretch.is_settled or is_older_news or (machine.state.bills and not was_restarted):
            continue
        latest = launched if launched and was_restarted else max(now, stretch.started)
        if stopped and stretch.started < stopped and not (was_restarted and stopped > latest):
            yield _ended(machine.id, stretch.started, stopped, Ending.SAID)
        elif stretch.ended is None or latest < stretch.ended:
            yield _ended(machine.id, stretch.started, latest, Ending.SEEN)
    if launched is None:
        return
    same = next((stretch for stretch in known if stretch.started == launched), None)
    if same is None and machine.state.bills:
        yield _started(machine, launched)
    elif same is None and stopped and stopped > launched:
        yield _started(machine, launched)
        yield _ended(machine.id, launched, stopped, Ending.SAID)
    elif same and machine.state in {State.PENDING, State.RUNNING}:
        is_priced_now = same.price_usd_per_hour is None and machine.price_usd_per_hour is not None
        if same.ending is Ending.SEEN or is_priced_now:
            yield _started(machine, launched)


def _last_boot(stretch: Stretch, boots: list[Uptime]) -> Uptime | None:
    """The boot that the stretch ended with: its first one, or that of the last reboot; None where the log lacks it."""
    near = [boot for boot in boots if abs(boot.booted - stretch.started) <= _BOOT_AT_MOST]
    last = min(near, key=lambda boot: abs(boot.booted - stretch.started), default=None)
    for boot in boots:
        if last and last.ended and last.ended <= boot.booted <= last.ended + _BOOT_AT_MOST:
            last = boot if stretch.ended is None or boot.booted < stretch.ended else last
    return last if last and last.ended and stretch.ended and last.ended < stretch.ended else None


def _started(machine: Machine, launched: datetime) -> Mapping[str, object]:
    return {"event": "started", **_of(machine), "started": launched.isoformat()}


def _logged(machine: Machine, started: datetime, ended: datetime, reason: str) -> Mapping[str, object]:
    times = {"started": started.isoformat(), "ended": ended.isoformat()}
    return {"event": "logged", **_of(machine), **times, "reason": reason}


def _of(machine: Machine) -> Mapping[str, object]:
    return {
        "machine_id": machine.id,
        "name": machine.name,
        "provider": machine.provider,
        "region": machine.region,
        "type": machine.type,
        "price_usd_per_hour": machine.price_usd_per_hour,
    }


def _ended(
    machine_id: str, started: datetime, ended: datetime, ending: Ending, reason: str = ""
) -> Mapping[str, object]:
    return {
        "event": "ended",
        "machine_id": machine_id,
        "started": started.isoformat(),
        "ended": ended.isoformat(),
        "ending": ending.value,
        "reason": reason,
    }


def _stretch(fact: Mapping[str, Any]) -> Stretch:
    price = fact["price_usd_per_hour"]
    if price is not None and not 0 <= price < float("inf"):
        raise ValueError(price)
    return Stretch(
        machine_id=str(fact["machine_id"]),
        name=str(fact["name"]),
        provider=str(fact["provider"]),
        region=str(fact["region"]),
        type=str(fact["type"]),
        price_usd_per_hour=price,
        started=_time(fact["started"]),
    )


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} is in no time zone")
    return time
