"""What each finished epoch and cycle measured: lines of metrics.jsonl and of the log, and points of the plot."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch of one stage."""

    stage: str
    stage_index: int  # from 0
    epoch: int  # within the stage, from 1
    epochs: int  # of the stage
    steps: int  # batches
    train_loss: float
    valid_loss: float
    accuracy: float  # on the validation part
    scores: dict[str, float] = field(default_factory=dict)  # what else the recipe asks for, on the validation part
    lr: float  # the head's, at the epoch's first step
    images_per_s: float
    data_wait_fraction: float  # of the training time
    peak_memory_bytes: int  # of the GPU, or where there is none of the process
    seconds: float  # training and validation

    def line(self) -> str:
        """The epoch in the log."""
        where = f"{self.stage:<10} epoch {self.epoch:>2}/{self.epochs:<2}"
        scores = f"train {self.train_loss:6.4f}  valid {self.valid_loss:6.4f}  accuracy {self.accuracy:.4f}"
        more = "".join(f"  {name} {score:.4f}" for name, score in self.scores.items())
        return f"{where}  {scores}{more}  lr {self.lr:.1e}  {self.images_per_s:6.0f} img/s  {self.seconds:5.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One finished cycle of a stage that goes on until over-fitting."""

    number: int  # from 1
    epoch: int  # of the stage, at its end
    train_loss: float  # of the training images, not augmented
    valid_loss: float
    snapshot: str  # the file in checkpoints/ with the weights then


def best(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest accuracy; among equals, the lowest validation loss."""
    return max(history, key=lambda epoch: (epoch.accuracy, -epoch.valid_loss))


def best_cycle(cycles: Sequence[Cycle]) -> Cycle:
    """The cycle with the lowest validation loss; among equals the first."""
    return min(cycles, key=lambda cycle: cycle.valid_loss)


def overfits(cycles: Sequence[Cycle]) -> bool:
    """Whether the last cycle raised the validation loss while it lowered the training loss."""
    if len(cycles) < 2:
        return False
    before, last = cycles[-2:]
    return last.valid_loss > before.valid_loss and last.train_loss < before.train_loss
