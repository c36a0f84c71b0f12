"""gpuops taken off an account and a computer, all but the results."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuops import cost
from gpuops.errors import StateError, VendorUnreachable
from gpuops.lifecycle import Tell
from gpuops.settings import Settings
from gpuops.workflow.session import REAL_CLOCK, Session

# In `Settings.home`, and all that we made there but the results: what else may lie there is not ours to delete.
_OURS = ("keys", "launches", "locks", "ledger.jsonl", "prices.json")
_RESULTS = "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """What is about to go from this computer, and the folder of results that stays (None where there are none)."""

    gone: tuple[Path, ...]
    ssh_config: Path
    results: Path | None


def uninstall(settings: Settings, *, confirm: Callable[[Leaving], None], tell: Tell) -> list[str]:
    """Delete what gpuops made in the account's regions, and its files and ssh config here; results stay.

    Says in words what is gone at the provider. Raises `StateError` while there is a machine, `VendorUnreachable`
    while a region is silent.
    """
    session = Session.open(settings, tell, REAL_CLOCK)
    inventory = session.provider.machines()
    if inventory.unanswered:
        raise VendorUnreachable(
            "Not all regions answered; there may be machines in: "
            + ", ".join(place.place for place in inventory.unanswered)
            + ".",
            left_behind="Nothing was deleted.",
            next_step="gpuops uninstall",
        )
    if inventory.machines:
        first = inventory.machines[0]
        own = [f"gpuops down {machine.name} --terminate" for machine in inventory.machines if not machine.is_adopted]
        give_back = "take the tags gpuops:… off it in the provider's console (it was there before gpuops)"
        raise StateError(
            f"There are machines: {', '.join(machine.name for machine in inventory.machines)}.",
            left_behind="Nothing was deleted. "
            + " ".join(
                f"{machine.name} is {machine.state.value}, at {cost.per_hour(machine)}, disk {cost.disk(machine)}."
                for machine in inventory.machines
            ),
            next_step=own[0] if own else f"{first.name}: {give_back}",
        )
    gone = tuple(path for name in _OURS if (path := settings.home / name).exists())
    results = settings.home / _RESULTS
    confirm(Leaving(gone=gone, ssh_config=settings.ssh_config, results=results if results.is_dir() else None))
    swept = session.provider.sweep()
    session.book.remove_everything()
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: it stays
        settings.home.rmdir()
    return swept
