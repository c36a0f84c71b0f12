"""The only two loops: train one epoch, evaluate. Nothing in them waits for the device before the loop's end."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.batches import Batches, parts
from trainer.distributed import Team
from trainer.losses import image_losses, probabilities
from trainer.trainee import SMOOTHING, Trainee


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One epoch of training, or what was left of it."""

    loss: float  # exponential average at the epoch's end, corrected for its start at zero
    images_per_s: float
    data_wait_fraction: float  # of the time, spent waiting for images


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The network's answers for a whole part, in its order, on the CPU."""

    losses: Tensor  # (image,)
    probabilities: Tensor  # (image, class)
    targets: Tensor

    @property
    def loss(self) -> float:
        """The mean over the images."""
        return self.losses.double().mean().item()


def train_epoch(
    trainee: Trainee,
    batches: Batches,
    loss_of: Callable[[int, Tensor, Tensor], Tensor],
    rate_at: Callable[[int], float],
    after_step: Callable[[int], None],
    sizes: Sequence[int],
    first: int = 0,
    accumulate: int = 1,
) -> Trained:
    """The epoch's batches from number `first` on, one step per `accumulate` of them.

    `sizes` are the numbers of images in them, of which this process may be shown a share.

    `loss_of(number, inputs, targets)` is a batch's mean loss, `rate_at(number)` the share of the highest learning rate
    then. `after_step(next)` is called after each whole step with the next batch's number, and may raise to end it.
    """
    trainee.network.train()
    team = trainee.team
    started = time.perf_counter()
    for at, (inputs, targets) in enumerate(batches):
        targets = targets.to(trainee.device, non_blocking=True)
        loss = loss_of(first + at, inputs, targets)
        if team.size > 1:  # the mean over the processes is then the mean over the batch's images
            loss = loss * (len(targets) * team.size / sizes[at])
        # Several small batches weigh as much as the same images in one large batch.
        together = sizes[at - at % accumulate :][:accumulate]
        trainee.learn(loss, share=sizes[at] / sum(together))
        if at % accumulate == len(together) - 1:
            trainee.step(
                rate_at(first + at + 1 - len(together))
            )  # as at the start of the large batch that they stand for
            after_step(first + at + 1)
    steps = first + len(batches)
    average = team.mean(trainee.average).item()  # the first moment at which the device is waited for
    smoothed = average / (1 - SMOOTHING**steps)
    seconds = time.perf_counter() - started
    return Trained(
        loss=smoothed,
        images_per_s=sum(sizes) / seconds,
        data_wait_fraction=batches.waited_s / seconds,
    )


@torch.inference_mode()
def evaluate(
    scores_of: Callable[[Tensor], Tensor],
    shown: Callable[[Sequence[Sequence[int]]], Batches],
    count: int,
    batch_size: int,
    team: Team,
    after_batch: Callable[[], None],
) -> Answers:
    """The answers to `count` images; `shown(parts)` gives those batches of them, `scores_of(inputs)` class scores.

    The caller has put the network into evaluation mode. Each process answers for a share of the images;
    `after_batch` is not called where there are several, for they must not part ways within a loop.
    """
    losses: list[Tensor] = []
    answers: list[Tensor] = []
    targets: list[Tensor] = []
    for inputs, wanted in shown(parts(team.share(range(count)), batch_size)):
        scores = scores_of(inputs).float()
        losses.append(image_losses(scores, wanted.to(team.device, non_blocking=True)))
        answers.append(probabilities(scores, multi_label=wanted.ndim == 2))
        targets.append(wanted)
        if team.size == 1:
            after_batch()
    return Answers(
        losses=team.joined(torch.cat(losses), count),
        probabilities=team.joined(torch.cat(answers), count),
        targets=team.joined(torch.cat(targets), count),
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most that the GPU, or where there is none the process, has held since the run began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kB on Linux
