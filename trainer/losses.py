"""What a network is trained to lower, and what it is measured by: the same but for the options of a stage."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.randomness import Draw, generator
from trainer.stage import Stage

Loss = Callable[[Tensor, Tensor], Tensor]


def training_loss(stage: Stage, targets: Tensor, class_count: int, device: torch.device) -> Loss:
    """The stage's mean loss of a batch: (scores (batch, class), targets of probabilities (batch, class)) to a number.

    Class weights are those of scikit-learn's "balanced": images / (classes × images of the class).
    """
    weights = _balanced(targets, class_count).to(device) if stage.class_weights == "balanced" else None
    if targets.ndim == 1:

        def single(scores: Tensor, wanted: Tensor) -> Tensor:
            # Divided by the images, not by their weights as torch would: the mean of several batches is then theirs.
            total = F.cross_entropy(scores, wanted, weights, reduction="sum", label_smoothing=stage.label_smoothing)
            return total / len(scores)

        return single

    def several(scores: Tensor, wanted: Tensor) -> Tensor:
        smooth = wanted * (1 - stage.label_smoothing) + stage.label_smoothing / 2
        # `weight`, not `pos_weight`: a rare label counts for more, whether it is there or not.
        return F.binary_cross_entropy_with_logits(scores, smooth, weights)

    return several


def image_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Each image's loss (batch,), by which parts are compared: no weights, no smoothing."""
    if targets.ndim == 1:
        return F.cross_entropy(scores, targets, reduction="none")
    return F.binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(dim=1)


def probabilities(scores: Tensor, multi_label: bool) -> Tensor:
    """(batch, class): softmax where an image has one label, each label's own sigmoid where it may have several."""
    return scores.sigmoid() if multi_label else scores.softmax(dim=1)


def mixed(
    images: Tensor, targets: Tensor, class_count: int, alpha: float, address: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Each image blended with another of its batch, and their targets likewise (mixup, arXiv:1710.09412).

    `images` are normalised; `address` is (seed, stage, epoch, batch).
    """
    random = generator(Draw.MIXUP, *address)
    share = float(random.beta(alpha, alpha))
    partner = torch.from_numpy(random.permutation(len(images)).astype(np.int64)).to(images.device)
    wanted = F.one_hot(targets, class_count).to(images.dtype) if targets.ndim == 1 else targets
    return share * images + (1 - share) * images[partner], share * wanted + (1 - share) * wanted[partner]


def _balanced(targets: Tensor, class_count: int) -> Tensor:
    counts = targets.bincount(minlength=class_count) if targets.ndim == 1 else targets.sum(dim=0)
    return len(targets) / (class_count * counts.clamp(min=1).float())
