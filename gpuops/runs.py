"""A run is a directory: what was asked for, what came of it, and whether all of that is home."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from gpuops import durable
from gpuops.errors import BadData, NewerFormat, UnknownRun
from gpuops.machine import FORMAT

# Ids are names of folders, and some come from machines: nothing else may be one.
_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was asked for: written once, before the job starts, here and on the machine (``run.json``).

    `then` is what becomes of the machine after the job: "stop", "terminate" or "keep". Without a client it stops by
    itself `grace_minutes` after the job's end, by the command `poweroff`. `type` is the machine's, "" in a run that was
    written without it.
    """

    id: str
    machine: str
    machine_id: str
    provider: str
    region: str
    recipe: str
    python: str
    argv: tuple[str, ...]
    trainer_digest: str
    recipe_digest: str
    data_digest: str
    price_usd_per_hour: float | None
    then: str
    grace_minutes: float
    poweroff: tuple[str, ...]
    created: str
    type: str = ""
    format: int = FORMAT

    @property
    def remote_dir(self) -> str:
        """Its folder on the machine, relative to the home folder."""
        return f"gpuops/runs/{self.id}"

    def json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


class RunStore:
    """The runs of this computer, one folder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, run: Run) -> None:
        durable.write(self.path(run.id) / "run.json", run.json(), mode=0o644)

    def path(self, run_id: str) -> Path:
        return self.folder / run_id

    def all(self) -> list[Run]:
        """Every run whose run.json can be read, oldest first."""
        runs = []
        for path in self._folders():
            with contextlib.suppress(BadData):
                runs.append(read(path))
        return runs

    def damaged(self) -> list[Path]:
        """The folders of runs whose run.json can't be read."""
        known = {run.id for run in self.all()}
        return [path for path in self._folders() if path.name not in known]

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if is_id(p.name)) if self.folder.is_dir() else []

    def find(self, run_id: str | None) -> Run:
        """The run of that id, or of a unique beginning of it; the newest for None. Raises `UnknownRun`."""
        runs = self.all()
        if run_id is None:
            if not runs:
                raise UnknownRun("(the newest)", [], next_step="There are no runs yet: gpuops train")
            return runs[-1]
        found = [run for run in runs if run.id == run_id] or [run for run in runs if run.id.startswith(run_id)]
        if len(found) > 1:
            raise UnknownRun(run_id, [], next_step=f"Several begin so: {', '.join(run.id for run in found)}.")
        if not found:
            raise UnknownRun(run_id, [run.id for run in runs], next_step="See them all: gpuops runs")
        return found[0]

    def is_home(self, run_id: str) -> bool:
        """True when every file of its manifest has been here, with its SHA-256 agreeing."""
        return (self.path(run_id) / "home.json").is_file()

    def mark_home(self, run_id: str, *, files: int, now: datetime) -> None:
        written = {"format": FORMAT, "verified_files": files, "verified": now.isoformat()}
        durable.write(self.path(run_id) / "home.json", json.dumps(written).encode(), mode=0o644)


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def new_id(now: datetime) -> str:
    """UTC time and six random characters: sorts by age, and two computers don't meet."""
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def read(folder: Path) -> Run:
    """The run of a folder. Raises `NewerFormat`."""
    return from_json((folder / "run.json").read_bytes(), where=str(folder))


def from_json(data: bytes, *, where: str) -> Run:
    try:
        stored: Mapping[str, object] = json.loads(data)
        if int(str(stored["format"])) > FORMAT:
            raise NewerFormat(f"{where} was written by a newer gpuops.", next_step="Upgrade gpuops, then try again.")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
        run = Run(**values)  # type: ignore[arg-type]
        if not is_id(run.id):
            raise ValueError(f"{run.id!r} is not the id of a run")
        if run.price_usd_per_hour is not None and not isinstance(run.price_usd_per_hour, int | float):
            raise ValueError(f"{run.price_usd_per_hour!r} is no amount of USD")
    except (ValueError, TypeError, LookupError) as error:
        raise BadData(f"{where}/run.json is damaged: {error}.", next_step="gpuops pull") from error
    return run
