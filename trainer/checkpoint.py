"""One file from which a run goes on exactly: tensors, and everything else as JSON in the file's header.

A single safetensors file, replaced atomically, so that tensors and counters can never belong to different moments.
Nothing random is in it: order, augmentation and dropout follow from (seed, stage, epoch, batch or image).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainer.errors import RunDirRefused
from trainer.rundir import write_atomically

FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file held: values that are JSON, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]


def write(path: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint at `path`. Raises DiskFull, RunDirRefused."""
    # Two names for the same memory can't be saved, and what is written must not change meanwhile: copies.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    header = {"format": str(FORMAT), "values": json.dumps(dict(values), allow_nan=False)}
    write_atomically(path, save(copies, metadata=header))


def read(path: Path) -> Checkpoint:
    """What `write` left there. Raises RunDirRefused."""
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            found = int(header["format"])
            if found != FORMAT:
                age, mend = (
                    ("a newer", "Upgrade this one") if found > FORMAT else ("an older", "Delete it to start over")
                )
                raise RunDirRefused(f"{path} was written by {age} trainer", mend)
            values = json.loads(header["values"])
            if not isinstance(values, dict):
                raise ValueError("its header is no table")
            for name in file.keys():  # noqa: SIM118  # not a dictionary
                tensors[name] = file.get_tensor(name)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunDirRefused(f"The checkpoint {path} cannot be read: {error}", "Delete it to start over") from error
    return Checkpoint(values=values, tensors=tensors)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, their names with this in front."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
