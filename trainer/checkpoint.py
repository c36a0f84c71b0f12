"""One file from which a run goes on exactly: network and optimizer as tensors, the rest as JSON in the file's header.

A single safetensors file, replaced atomically, so that tensors and counters can never belong to different epochs.
Nothing random is in it: order, augmentation and dropout follow from (seed, stage, epoch).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainer.errors import RunDirRefused
from trainer.rundir import write_atomically

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far the run had come, and what it was a run of."""

    stage_index: int
    epoch: int  # epochs finished in that stage
    metrics_bytes: int  # the length of metrics.jsonl then
    threads: int  # torch's: another number adds up in another order
    recipe_sha256: str
    images_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file held: the position, and tensors by name."""

    position: Position
    network: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]


def write(path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Replace the checkpoint at `path`. Raises DiskFull, RunDirRefused."""
    tensors = {f"network/{key}": tensor.contiguous() for key, tensor in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": tensor.contiguous() for key, tensor in values.items()}
    write_atomically(path, save(tensors, metadata={"format": str(FORMAT), "position": json.dumps(asdict(position))}))


def read(path: Path) -> Checkpoint:
    """What `write` left there. Raises RunDirRefused."""
    network: dict[str, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            if int(header["format"]) > FORMAT:
                raise RunDirRefused(f"{path} was written by a newer trainer", "Upgrade this one")
            position = Position(**json.loads(header["position"]))
            for name in file.keys():  # noqa: SIM118  # not a dictionary
                kind, _, key = name.partition("/")
                if kind == "network":
                    network[key] = file.get_tensor(name)
                else:
                    index, _, value = key.partition("/")
                    optimizer.setdefault(int(index), {})[value] = file.get_tensor(name)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunDirRefused(f"The checkpoint {path} cannot be read: {error}", "Delete it to start over") from error
    return Checkpoint(position=position, network=network, optimizer=optimizer)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Give a stage's newly built optimizer the momentum it had."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
