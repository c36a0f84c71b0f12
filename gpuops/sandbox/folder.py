"""The sandbox's folder: what lies where, and how a file in it is written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Folder:
    """One sandbox. Everything it writes lies below `root`, so that deleting that is deleting it."""

    root: Path

    @property
    def mark(self) -> Path:
        """Made together with the folder: only a folder that has it is the sandbox's to write in, and to delete."""
        return self.root / "gpuops-sandbox"

    @property
    def announcement(self) -> Path:
        """Where the running cloud says its address and process id."""
        return self.root / "cloud.json"

    @property
    def log(self) -> Path:
        return self.root / "cloud.log"

    @property
    def alive(self) -> Path:
        """Locked by the cloud for as long as it lives. The kernel lets go when it dies, however it dies."""
        return self.root / "cloud.alive"

    @property
    def command(self) -> Path:
        """Locked by the one command that starts, stops or deletes this sandbox now."""
        return self.root / "cloud.lock"

    @property
    def machines(self) -> Path:
        """One folder for each machine, named by its instance id: its disk, its console, its configuration."""
        return self.root / "machines"

    @property
    def home(self) -> Path:
        """What gpuops itself keeps, when it works with this sandbox."""
        return self.root / "home"

    @property
    def aws_config(self) -> Path:
        return self.root / "aws-config"


def write_json(path: Path, value: Mapping[str, object] | Sequence[object]) -> None:
    """Replace the file at once, readable only by its owner: a machine's user data holds private keys."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
        os.replace(temporary, path)  # noqa: PTH105  # a str, from mkstemp
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
