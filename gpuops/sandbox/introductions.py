"""Keys that the vendor has a machine admit for a moment, as EC2 Instance Connect does: in the machine's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpuops.sandbox.folder import write_json

FILE_NAME = "introduced.json"


def add(machine: Path, *, user: str, key: str, until: float, now: float) -> None:
    """Admit this public key for this user; times are seconds of the epoch. Two at once are the caller's to prevent."""
    kept = [entry for entry in _read(machine) if entry["until"] > now]
    write_json(machine / FILE_NAME, [*kept, {"user": user, "key": key.strip(), "until": until}])


def keys(machine: Path, *, user: str, now: float) -> list[str]:
    """The public keys that this user may come with now."""
    return [entry["key"] for entry in _read(machine) if entry["user"] == user and entry["until"] > now]


def _read(machine: Path) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads((machine / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return entries
