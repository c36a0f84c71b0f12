"""How fast a step is computed, decided by a short measurement on this machine: number format, memory layout, folding.

The decision is kept beside the other caches, so that a second run on the machine computes as the first did, and in the
checkpoint, so that a resumed one does.
"""

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import models
from trainer.device import bf16_supported, fp16_supported
from trainer.models import Network
from trainer.rundir import write_atomically
from trainer.stage import Stage
from trainer.store import key

PROBE_IMAGES = 8
MOST_BYTES = 1000  # of a remembered decision
WORTHWHILE = 1.15  # what is not this much faster than plain fp32 is not worth its rounding
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How the network's steps are computed. `images_per_s` is what the measurement gave, 0 where none was made."""

    precision: str = "fp32"
    channels_last: bool = False
    folded: bool = False  # BatchNorm folded into the convolutions of the frozen part
    images_per_s: float = 0.0

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """The number format, for the forward pass."""
        dtype = DTYPES.get(self.precision)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            yield

    def laid_out(self, images: Tensor) -> Tensor:
        """The batch (image, channel, height, width) in the layout."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def lay_out(self, module: nn.Module) -> None:
        """Put the module's weights into the layout."""
        module.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def __str__(self) -> str:
        words = [
            self.precision,
            "channels_last" if self.channels_last else "",
            "BatchNorm folded" if self.folded else "",
        ]
        return ", ".join(word for word in words if word)


EXACT = Pace(channels_last=True)  # of everything that is reported at the end, and of `predict`


def choose(network: Network, stage: Stage, device: torch.device, cache: Path) -> tuple[Pace, list[Pace]]:
    """The fastest pace for the stage, and all that were measured (none where it was known or is stated).

    The frozen part is measured alone where only the head learns: there it takes nearly all the time.
    """
    frozen = network.frozen == network.group_count - 1
    asked = paces(stage.precision, device, frozen)
    if len(asked) == 1:
        return asked[0], []
    place = cache / "pace" / f"{_key(network, stage, device, frozen)}.json"
    known = _known(place)
    if known is not None and replace(known, images_per_s=0.0) in asked:
        return known, []
    measured = [_measured(network, stage, pace, device, frozen) for pace in asked]
    best = max(measured, key=lambda pace: pace.images_per_s)
    if best.images_per_s < WORTHWHILE * measured[0].images_per_s:
        best = measured[0]
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(asdict(best)).encode())
    return best, measured


def paces(precision: str, device: torch.device, frozen: bool) -> list[Pace]:
    """What is to be compared: plain fp32 first. With a precision that is stated, nothing is."""
    if precision != "auto":
        return [Pace(precision=precision, channels_last=True, folded=frozen)]
    found = [Pace(), Pace(channels_last=True)]
    if bf16_supported(device.type):
        found.append(Pace(precision="bf16", channels_last=True))
    elif fp16_supported(device.type):
        found.append(Pace(precision="fp16", channels_last=True))
    return found + [replace(found[-1], folded=True)] * frozen


def body(network: Network, pace: Pace) -> Callable[[Tensor], Tensor]:
    """The frozen part, to be called with normalised images at that pace: features (batch, width)."""
    if not pace.folded:
        pace.lay_out(network.module)
        return network.features
    folded = models.frozen_forward(network)
    pace.lay_out(folded)
    return folded


def _measured(network: Network, stage: Stage, pace: Pace, device: torch.device, frozen: bool) -> Pace:
    """The pace with the images per second of the better of two steps, after a first one, on a copy of the network."""
    images = pace.laid_out(torch.zeros(PROBE_IMAGES, 3, stage.size_px, stage.size_px, device=device))
    trial = copy.deepcopy(network)
    pace.lay_out(trial.module)
    trial.train()
    forward = body(trial, pace) if frozen else trial.module

    def step() -> None:
        with torch.set_grad_enabled(not frozen), pace.on(device):
            answer = forward(images)
        if not frozen:
            answer.float().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    seconds = []
    for _ in range(2):  # the better one: another process may have had the cores in between
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return replace(pace, images_per_s=PROBE_IMAGES / min(seconds))


def _key(network: Network, stage: Stage, device: torch.device, frozen: bool) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return key(
        arch=network.arch,
        size_px=stage.size_px,
        frozen_groups=network.frozen,
        frozen=frozen,
        device=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def _known(place: Path) -> Pace | None:
    """What was decided before; None where that can't be read, or is not what a measurement leaves."""
    try:
        values = json.loads(place.read_bytes()[:MOST_BYTES]) if place.is_file() else {}
        known = Pace(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    speed = known.images_per_s
    return known if isinstance(speed, float) and 0 < speed < math.inf else None
