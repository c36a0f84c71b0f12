"""What each finished epoch measured: a line of metrics.jsonl, of the log, and a point of the plot."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch of one stage."""

    stage: str
    stage_index: int  # from 0
    epoch: int  # within the stage, from 1
    epochs: int  # of the stage
    steps: int
    train_loss: float
    valid_loss: float
    accuracy: float  # on the validation set
    lr: float  # the head's, at the epoch's first step
    images_per_s: float
    data_wait_fraction: float  # of the training time
    seconds: float  # training and validation

    def line(self) -> str:
        """The epoch in the log."""
        where = f"{self.stage:<10} epoch {self.epoch:>2}/{self.epochs:<2}"
        scores = f"train {self.train_loss:6.4f}  valid {self.valid_loss:6.4f}  accuracy {self.accuracy:.4f}"
        return f"{where}  {scores}  lr {self.lr:.1e}  {self.images_per_s:6.0f} img/s  {self.seconds:5.1f} s"


def best(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest accuracy; among equals, the lowest validation loss."""
    return max(history, key=lambda epoch: (epoch.accuracy, -epoch.valid_loss))
