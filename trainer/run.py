"""What stays the same from a run's first step to its last, resumed or not."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainer import transforms
from trainer.data.pixels import Pixels, Unreadable
from trainer.device import Device
from trainer.models import Network
from trainer.recipe import Recipe
from trainer.rundir import RunDir
from trainer.schedules import group_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The recipe and what it is run with. `on_step` beats the heart and may raise Stopped."""

    recipe: Recipe
    rundir: RunDir
    device: Device
    network: Network
    classes: tuple[str, ...]
    train: Pixels
    valid: Pixels
    unreadable: tuple[Unreadable, ...]
    workers: int
    on_step: Callable[[], None]

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device.torch_name)

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        return partial(transforms.normalised, mean=self.recipe.data.mean, std=self.recipe.data.std)

    @property
    def head_rates(self) -> list[float]:
        """The head's highest learning rate in each stage."""
        return [group_rates(stage.lr, stage.spread, self.network.group_count)[-1] for stage in self.recipe.stages]

    @property
    def images_sha256(self) -> str:
        """The digest of the images' names, labels and order."""
        images = [self.train.names, self.train.labels, self.valid.names, self.valid.labels, self.classes]
        return hashlib.sha256(json.dumps(images).encode()).hexdigest()
