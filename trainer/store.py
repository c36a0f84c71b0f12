"""Shards of tensors below one folder, which is named by the digest of everything that decided their content.

Resized images and precomputed activations both lie in it. A changed part makes another name, so nothing stale is ever
read; two processes may fill the same folder at once, for both write the same.
"""

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainer.rundir import write_atomically, writing

ITEMS = "items"  # how many items a shard stands for, in its metadata


class Shards:
    """`count` items, `per_shard` to a safetensors file, each file written whole or not at all."""

    def __init__(self, folder: Path, count: int, per_shard: int) -> None:
        self.per_shard = per_shard
        self._folder = folder
        self.ranges = [range(start, min(start + per_shard, count)) for start in range(0, count, per_shard)]

    def read(self, shard: int) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """The shard's tensors, mapped from the file, and its metadata.

        None where it is absent, no safetensors file, cut short, or made for another number of items.
        """
        try:
            with safe_open(self._path(shard), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.pop(ITEMS, "") != str(len(self.ranges[shard])):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (no iterator)
        except (OSError, SafetensorError):
            return None

    def write(self, shard: int, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Put the shard in its place. Raises DiskFull, RunDirRefused."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(shard), save(tensors, metadata | {ITEMS: str(len(self.ranges[shard]))}))

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:05}.safetensors"


def key(**parts: object) -> str:
    """The SHA-256 of the parts, which are JSON values, in hexadecimal: another value of any part, another key."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def default_cache() -> Path:
    """Where shards and downloaded sets lie unless --cache says otherwise, as the XDG base directory rules have it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuops-trainer"
