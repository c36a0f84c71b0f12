"""Making a machine: one offer after the other until one has room, each with its record on disk before the call."""

from __future__ import annotations

import functools
from dataclasses import replace

from gpuops import cost
from gpuops.errors import GpuopsError, NoCapacity, Throttled, TokenSpent, VendorUnreachable
from gpuops.launches import Launch, LaunchRecords
from gpuops.lifecycle.clock import Clock, polls, tried_again
from gpuops.lifecycle.plan import Plan
from gpuops.lifecycle.release import Release
from gpuops.machine import Machine, Offer
from gpuops.providers import Provider

# How long the other of two simultaneous launches may take to see ours and to take its own machine back.
_RIVALS_GO_WITHIN_S = 15.0


def launch(
    provider: Provider, plan: Plan, records: LaunchRecords, key: str, release: Release, *, client_key: str
) -> Machine:
    """Make the planned machine: a cut-off launch is sent again as it was; else offer by offer, until one has room.

    Raises `NoCapacity` (or its one kind, if all refusals are of that) with the reason of every attempt.
    """
    if plan.unfinished:
        release.tell("Finishing the launch that was cut off")
        try:
            return _launched(provider, plan.unfinished, records, key, release)
        except TokenSpent:  # it did launch, and that machine has been terminated since
            plan = replace(plan, unfinished=None, offers=tuple(provider.offers(plan.wish)))
    refusals: list[tuple[Offer, NoCapacity]] = []
    for offer in plan.offers:
        if any(offer.type == refused.type and error.scope != "zone" for refused, error in refusals):
            continue
        release.tell(f"Launching {offer.type} in {offer.place}")
        # What it may cost decides how long it may run, and each type has another price.
        hours = plan.limits.hours(plan.wish.max_hours, offer.price_usd_per_hour)
        wish = replace(plan.wish, max_hours=hours)
        prepared = tried_again(release.clock, functools.partial(provider.prepare, wish, offer, client_key=client_key))
        record = records.write(key, prepared=prepared, now=release.clock.now())
        try:
            return _launched(provider, record, records, key, release)
        except NoCapacity as error:
            refusals.append((offer, error))
            release.tell(f"No {offer.type} in {offer.place}")
    raise _no_room(refusals)


def _no_room(refusals: list[tuple[Offer, NoCapacity]]) -> NoCapacity:
    kinds = {type(error) for _, error in refusals}
    kind = kinds.pop() if len(kinds) == 1 else NoCapacity
    mends = dict.fromkeys(error.next_step for _, error in refusals if error.next_step)
    return kind(
        "No machine could be had.\n" + "\n".join(f"  {o.type} in {o.place}: {error.what}" for o, error in refusals),
        left_behind="Nothing was launched.",
        next_step="\n      ".join(mends) or "Try again later, another region (--region), or another type (--type).",
    )


def _launched(provider: Provider, record: Launch, records: LaunchRecords, key: str, release: Release) -> Machine:
    """Sent with the same token until there is an answer: a token makes one machine, however often it comes."""
    release.expects(record.prepared.host_key)
    lost_answers = 0

    def sent() -> Machine:
        nonlocal lost_answers
        try:
            return provider.launch(record.prepared, record.token)
        except Throttled:
            raise
        except VendorUnreachable:
            lost_answers += 1
            raise

    try:
        machine = tried_again(release.clock, sent)
    except GpuopsError as error:
        # No room, after an answer that was lost, is a no to that too: the token would have given the machine.
        if lost_answers and not isinstance(error, NoCapacity | TokenSpent):
            error.left_behind = (
                "The launch may have happened all the same; the next `gpuops up` finishes it and does not repeat it. "
                f"Such a machine costs {cost.rate(record.prepared.offer.price_usd_per_hour)} and stops by itself."
            )
            raise
        records.clear(key)  # a definite no: nothing was made
        release.expects(None)
        raise
    release.owns(machine)
    kept = _the_one_that_stays(provider, machine, records, key, release.clock)
    if kept.id != machine.id:
        release.tell(f"{kept.id} of that name was there first; taking back {machine.id}")
        tried_again(release.clock, lambda: provider.terminate(machine))
        release.keep()
    return kept


def _the_one_that_stays(provider: Provider, mine: Machine, records: LaunchRecords, key: str, clock: Clock) -> Machine:
    """Two computers may launch one name at the same moment: then each takes back only what its own call created.

    The machine prepared first stays, if both are still looking. A rival that doesn't go belongs to a command that
    looked while it was alone, and may be in use by now: then ours goes, which has nothing on it.
    """
    for _ in polls(clock, _RIVALS_GO_WITHIN_S):
        listed = tried_again(clock, lambda: provider.find(mine.name)).machines
        rivals = [m for m in listed if m.id != mine.id]
        if mine.id not in {m.id for m in listed}:
            continue  # then a rival may not be listed yet either
        records.clear(key)
        oldest = min((mine, *rivals), key=_creation)
        if not rivals or oldest.id != mine.id:
            return oldest
    return min(rivals, key=_creation, default=mine)


def _creation(machine: Machine) -> tuple[str, str]:
    return (machine.tags.get("gpuops:created", ""), machine.id)
