"""The launch record: on disk before the call that creates a machine, so that no crash can make us lose one.

It holds the client token and the exact request. A retry sends those bytes, and the provider answers with the same
machine. It also holds the machine's private host key (part of the request), so it is 0600 and is removed as soon as
the provider shows the machine.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gpuops import durable
from gpuops.errors import NewerFormat
from gpuops.machine import FORMAT, Offer, Prepared

# How long after a launch call a provider may still fail to list its machine. EC2 is eventually consistent over
# "seconds to minutes" (EC2 developer guide, Eventual consistency); after this the provider's list is believed.
_INVISIBLE_AT_MOST = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch that may have happened: its token, what was sent, and when."""

    token: str
    prepared: Prepared
    created: datetime

    def may_be_invisible(self, now: datetime) -> bool:
        """True while the provider might have made the machine without showing it yet."""
        return now - self.created < _INVISIBLE_AT_MOST


class LaunchRecords:
    """The records in one folder; `key` names the provider, the account and the machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, key: str, *, prepared: Prepared, now: datetime) -> Launch:
        """A new record with a new token, durably on disk when this returns."""
        launch = Launch(token=secrets.token_hex(16), prepared=prepared, created=now)
        stored = {
            "format": FORMAT,
            "token": launch.token,
            "created": now.isoformat(),
            "offer": dataclasses.asdict(prepared.offer),
            "request": prepared.request,
            "host_key": prepared.host_key,
        }
        durable.write(self._path(key), json.dumps(stored, indent=1).encode())
        return launch

    def read(self, key: str) -> Launch | None:
        """The record of a launch that was begun and not seen to its end. Raises `NewerFormat`."""
        path = self._path(key)
        if not path.exists():
            return None
        stored = json.loads(path.read_bytes())
        if stored["format"] > FORMAT:
            raise NewerFormat(f"{path} was written by a newer gpuops.", next_step="Upgrade gpuops, then try again.")
        return Launch(
            token=stored["token"],
            prepared=Prepared(offer=Offer(**stored["offer"]), request=stored["request"], host_key=stored["host_key"]),
            created=datetime.fromisoformat(stored["created"]),
        )

    def clear(self, key: str) -> None:
        """Forget it: the provider shows the machine, or has said that it made none."""
        durable.remove(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"
