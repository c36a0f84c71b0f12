"""What a machine's kernel says of itself, in `proc` on the machine's disk: how long it is up, and which boot it is."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

_EVERY_S = 0.5


class Kernel:
    """One boot's. `booted_at` is the event loop's time (monotonic) of the boot."""

    def __init__(self, disk: Path, *, booted_at: float) -> None:
        self._uptime = disk / "proc/uptime"
        self._boot_id = disk / "proc/sys/kernel/random/boot_id"
        self._booted_at = booted_at

    def start(self) -> None:
        """From now on, until the event loop ends."""
        self._boot_id.parent.mkdir(parents=True, exist_ok=True)
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        self._tell_time()

    def _tell_time(self) -> None:
        loop = asyncio.get_running_loop()
        new = self._uptime.with_suffix(".new")
        new.write_text(f"{loop.time() - self._booted_at:.2f} 0.00\n")
        new.replace(self._uptime)
        loop.call_later(_EVERY_S, self._tell_time)
