"""The only two loops: train one epoch, evaluate. Nothing in them waits for the device before the epoch's end."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from trainer.data.batches import Batches
from trainer.models import Network
from trainer.optimizer import set_rates

SMOOTHING = 0.98  # fast.ai 0.7's: the training loss shown is an average over about the last fifty steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One epoch of training."""

    loss: float  # exponential average at the epoch's end, corrected for its start at zero
    steps: int
    images_per_s: float
    data_wait_fraction: float  # of the time, spent waiting for images


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The network's answers for a whole set, and their scores over all of it (never averaged per batch)."""

    loss: float
    accuracy: float
    probabilities: Tensor  # (image, class), on the CPU


def train_epoch(
    network: Network,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    rate_at: Callable[[int], float],
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    on_step: Callable[[], None],
) -> Trained:
    """One pass over the batches. `rate_at(step)` is the share of the highest learning rate at that step of this epoch.

    `on_step` is called after each whole step, and may end the run by raising.
    """
    network.train()
    average = torch.zeros((), device=device)
    images_seen = 0
    started = time.perf_counter()
    for step, (images, labels) in enumerate(batches):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        set_rates(optimizer, rate_at(step))
        loss = F.cross_entropy(network.module(normalise(images)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.lerp_(loss.detach(), 1 - SMOOTHING)
        images_seen += len(labels)
        on_step()
    steps = len(batches)
    smoothed = average.item() / (1 - SMOOTHING**steps)  # the first moment at which the device is waited for
    seconds = time.perf_counter() - started
    return Trained(
        loss=smoothed,
        steps=steps,
        images_per_s=images_seen / seconds,
        data_wait_fraction=batches.waited_s / seconds,
    )


@torch.inference_mode()
def evaluate(
    network: Network,
    batches: Batches,
    class_count: int,
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    on_step: Callable[[], None],
) -> Evaluated:
    """Loss, accuracy and probabilities over all the batches, with dropout off and BatchNorm's stored statistics."""
    network.module.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    accuracy = MulticlassAccuracy(class_count, average="micro").to(device)
    probabilities: list[Tensor] = []
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        scores = network.module(normalise(images))
        loss += F.cross_entropy(scores, labels, reduction="sum")
        accuracy.update(scores, labels)
        probabilities.append(scores.softmax(dim=1))
        on_step()
    return Evaluated(
        loss=loss.item() / sum(len(part) for part in probabilities),
        accuracy=round(accuracy.compute().item(), 6),  # torchmetrics divides in float32: .9916667 is .9916666746
        probabilities=torch.cat(probabilities).cpu(),
    )
