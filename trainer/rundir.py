"""The run directory: what the trainer leaves for gpuops and for the person, each file written whole or not at all."""

import contextlib
import csv
import errno
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.errors import DiskFull, RunDirRefused

HEARTBEAT_EVERY_S = 2.0


class RunDir:
    """`metrics.jsonl`, `heartbeat`, `checkpoints/` and `out/` below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics.jsonl"
        self.heartbeat = root / "heartbeat"
        self.checkpoint = root / "checkpoints" / "last.safetensors"
        self.out = root / "out"
        self._beat_at = 0.0
        with writing(root):
            for folder in (self.checkpoint.parent, self.out):
                folder.mkdir(parents=True, exist_ok=True)

    def record(self, event: str, **values: Any) -> None:
        """Append one event to metrics.jsonl: on disk before this returns."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"event": event, "time": now, **values}, allow_nan=False)
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self, event: str) -> Iterator[dict[str, Any]]:
        """The events of that kind in metrics.jsonl, oldest first."""
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            if values["event"] == event:
                yield values

    def cut_metrics(self, length_bytes: int) -> None:
        """Forget what was recorded after a checkpoint that stands at this length."""
        if self.metrics.exists() and self.metrics.stat().st_size > length_bytes:
            with writing(self.metrics), self.metrics.open("ab") as file:
                file.truncate(length_bytes)

    def beat(self) -> None:
        """Say that the run advances; at most every two seconds."""
        if time.monotonic() - self._beat_at >= HEARTBEAT_EVERY_S:
            with writing(self.heartbeat):
                self.heartbeat.touch()
            self._beat_at = time.monotonic()

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        write_atomically(self.out / name, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *rows])
        write_atomically(self.out / name, text.getvalue().encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`; a reader, or a crash at any moment, sees the old file or the new one.

    Raises DiskFull, RunDirRefused.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate the system's refusal to write at `path`. Raises DiskFull, RunDirRefused."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            next_step = "Free some space; the same command with --resume goes on from the last finished epoch"
            raise DiskFull(f"The disk is full: {path} could not be written", next_step) from error
        raise RunDirRefused(
            f"{path} cannot be written: {error.strerror}", "Give another --out, or the right to write there"
        ) from error
