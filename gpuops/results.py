"""What a run has brought home: is it whole, and what does it say."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpuops.errors import ResultsDamaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended. `state` is one of: starting running succeeded failed cancelled interrupted, or "unknown"."""

    state: str
    exit_code: int | None = None
    reason: str = ""
    accuracy: float | None = None
    seconds: float | None = None


def verify(folder: Path) -> int:
    """The number of files, when each of the manifest is here with its size and SHA-256. Raises `ResultsDamaged`."""
    damaged = []
    files = _manifest(folder)
    for entry in files:
        path = folder / entry["path"]
        # A manifest comes from a machine: it must not make us read outside the run's folder.
        if (
            not path.resolve().is_relative_to(folder.resolve())
            or not path.is_file()
            or _sha256(path) != entry["sha256"]
        ):
            damaged.append(entry["path"])
    if damaged:
        raise _damaged(folder, damaged)
    return len(files)


def open_log(folder: Path) -> BinaryIO:
    """The run's log at home, to add to: never through a link, as what is added comes from a machine."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(folder / "log.txt", flags, 0o644), "ab")


def outcome(folder: Path) -> Outcome:
    """What the files that are home say of the run."""
    state = _read(folder / "state.json")
    summary = _read(folder / "out" / "summary.json")
    return Outcome(
        state=str(state.get("state", "unknown")),
        exit_code=code if isinstance(code := state.get("exit_code"), int) else None,
        reason=str(state.get("reason", "")),
        accuracy=_number(summary.get("accuracy")),
        seconds=_number(summary.get("seconds")),
    )


def _manifest(folder: Path) -> list[dict[str, str]]:
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        return [{"path": str(entry["path"]), "sha256": str(entry["sha256"])} for entry in files]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _damaged(folder, ["manifest.json"]) from error


def _damaged(folder: Path, names: list[str]) -> ResultsDamaged:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return ResultsDamaged(
        f"{len(names)} {'file' if len(names) == 1 else 'files'} of {folder.name} did not come home whole: {shown}.",
        left_behind="The machine still has what it wrote.",
        next_step=f"gpuops pull {folder.name}",
    )


def _read(path: Path) -> dict[str, Any]:
    """What a file says that may be missing or damaged: nothing, then."""
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
