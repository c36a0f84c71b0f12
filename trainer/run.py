"""What stays the same from a run's first step to its last, resumed or not."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import metrics, transforms
from trainer.data import batches
from trainer.data.batches import Batches
from trainer.data.pixels import Pixels, Unreadable
from trainer.device import Device
from trainer.distributed import Team
from trainer.keeper import Keeper
from trainer.metrics import Metric
from trainer.models import Network
from trainer.recipe import Recipe
from trainer.rundir import RunDir
from trainer.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The recipe and what it is run with."""

    recipe: Recipe
    rundir: RunDir
    keeper: Keeper
    device: Device
    team: Team
    network: Network
    classes: tuple[str, ...]
    multi_label: bool
    labels_why: str  # stated, or inferred from what
    train: Pixels
    valid: Pixels
    test: Pixels | None
    unreadable: tuple[Unreadable, ...]
    decoded_px: int  # the shorter side of every decoded image
    workers: int
    cache: Path
    given_metrics: tuple[tuple[str, Metric], ...]  # the person's own, by the names they gave

    @property
    def torch_device(self) -> torch.device:
        return self.team.device

    @property
    def parts(self) -> dict[str, Pixels]:
        """What is predicted: the validation part, and the test part where there is one."""
        return {"valid": self.valid} | ({"test": self.test} if self.test is not None else {})

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (batch, channel, height, width) on any device to float32 on the run's."""
        on_device = images.to(self.torch_device, non_blocking=True)
        return transforms.normalised(on_device, mean=self.recipe.data.mean, std=self.recipe.data.std)

    def batches(
        self, pixels: Pixels, parts: Sequence[Sequence[int]], varied: Callable[[Tensor, int], Tensor]
    ) -> Batches:
        """Those images, each made a square of one size by `varied(image, index)`."""
        make = batches.each(lambda index: varied(pixels[index], index), pin=self.torch_device.type == "cuda")
        return Batches(parts, pixels.targets, make, self.workers)

    def middles(self, pixels: Pixels, size_px: int) -> Callable[[Sequence[Sequence[int]]], Batches]:
        """To batches of those images, each its middle square."""
        return lambda parts: self.batches(pixels, parts, lambda image, _: transforms.validation(image, size_px))

    def score(self, probabilities: Tensor, targets: Tensor, threshold: float | None = None) -> dict[str, float]:
        """Accuracy, and every score that the recipe or the person asks for, at the recipe's threshold or this one."""
        if threshold is None:
            threshold = 0.5 if isinstance(self.recipe.threshold, str) else self.recipe.threshold
        names = self.recipe.metrics
        more = metrics.scores(names, self.given_metrics, probabilities, targets, threshold)
        return {"accuracy": metrics.accuracy(probabilities, targets, threshold), **more}

    def rates_of(self, stage_index: int, state: State) -> float | tuple[float, ...]:
        """A stage's highest learning rate: the recipe's, or what the finder chose."""
        lr = self.recipe.stages[stage_index].lr
        return state.rates[stage_index] if isinstance(lr, str) else lr

    @property
    def images_sha256(self) -> str:
        """The digest of the images' content, names, labels and order."""
        images = [
            [part.names, part.labels, part.digests] for part in (self.train, self.valid, self.test) if part is not None
        ]
        return hashlib.sha256(json.dumps([images, self.classes]).encode()).hexdigest()
