"""Several processes that train one network, as `torchrun --nproc-per-node=N -m trainer fit …` starts them.

Each takes its share of every batch, and of every part that is evaluated; the gradients are averaged by torch's
DistributedDataParallel. Scores are computed once, from everybody's answers, so their number doesn't change them. The
first process writes the run directory; every other one keeps a copy of its own in a temporary folder.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.device import Device
from trainer.errors import TeamLost

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """This process among those that train together: alone, unless torchrun started it."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of them."""
        return items[self.rank :: self.size]

    def learner(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes. BatchNorm's statistics are the first process's."""
        return DistributedDataParallel(module) if self.size > 1 else module

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size > 1:
            dist.all_reduce(value := value.clone())
            value /= self.size
        return value

    def any(self, here: bool) -> bool:
        """Whether it is so in any process: all must call this at the same step."""
        if self.size == 1:
            return here
        dist.all_reduce(flag := torch.tensor(float(here), device=self.device))
        return bool(flag.item())

    @contextlib.contextmanager
    def lead_first(self) -> Iterator[None]:
        """What the first process has done in here, the others find done: decoded images, a measured pace."""
        if self.rank and self.size > 1:
            dist.barrier()
        yield
        if not self.rank and self.size > 1:
            dist.barrier()

    def meet(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def joined(self, here: Tensor, count: int) -> Tensor:
        """Everybody's rows (count, …) in order, of which these are the ones of `share(range(count))`; on the CPU."""
        if self.size == 1:
            return here.cpu()
        longest = -(-count // self.size)
        padded = here.new_zeros(longest, *here.shape[1:], device=self.device)  # `all_gather` takes one length only
        padded[: len(here)] = here
        rows = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(rows, padded)
        joined = here.new_empty(count, *here.shape[1:], device="cpu")
        for rank, found in enumerate(rows):
            places = range(rank, count, self.size)
            joined[list(places)] = found[: len(places)].cpu()
        return joined


@contextlib.contextmanager
def team_of(device: Device, out: Path) -> Iterator[tuple[Team, Device, Path]]:
    """The team that torchrun's variables tell of, this process's GPU in it, and where it writes its run directory."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team(device=torch.device(device.torch_name)), device, out
        return
    rank = int(os.environ["RANK"])
    if device.torch_name == "cuda":
        device = replace(device, torch_name=f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device.torch_name)
    dist.init_process_group("nccl" if device.torch_name.startswith("cuda") else "gloo")
    try:
        team = Team(rank=rank, size=dist.get_world_size(), device=torch.device(device.torch_name))
        if rank == 0:
            team.meet()
            yield team, device, out
            return
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            copy = Path(folder) / "run"
            if (out / "checkpoints").is_dir():  # before the first process goes on, and so writes
                shutil.copytree(out / "checkpoints", copy / "checkpoints")
                shutil.copy(out / "metrics.jsonl", copy / "metrics.jsonl")
            team.meet()
            yield team, device, copy
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        what = "Another process of this run has ended, so this one can't go on"
        raise TeamLost(what, "Look at what that one says; --resume goes on from the last checkpoint") from error
    finally:
        dist.destroy_process_group()
