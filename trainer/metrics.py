"""Scores of a whole part of the images, by torchmetrics: computed once, from every answer, never averaged over batches.

So neither the batch size nor the number of processes can change a score.
"""

import importlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics.functional import classification as tm

from trainer.errors import RecipeRefused

Metric = Callable[[Tensor, Tensor], float]  # probabilities (image, class) and targets, as in Pixels.targets
THRESHOLDS = [step / 100 for step in range(5, 96)]


def accuracy(probabilities: Tensor, targets: Tensor, threshold: float) -> float:
    """The share of images whose label is right, or with several labels: whose labels are all right."""
    if targets.ndim == 1:
        right = probabilities.argmax(dim=1) == targets
    else:
        right = ((probabilities >= threshold) == (targets > 0.5)).all(dim=1)
    # torchmetrics divides in float32: .9916667 would be .9916666746
    return int(right.sum()) / len(targets)


def named(name: str, probabilities: Tensor, targets: Tensor, threshold: float) -> float:
    """The score of that name in a recipe. Averages are over classes, except f2 of several labels: over images.

    log_loss is the mean negative log-likelihood; auc the area under the ROC curve, each class against the rest.
    """
    count = probabilities.shape[1]
    if targets.ndim == 1:
        several = {
            "f1": lambda: tm.multiclass_f1_score(probabilities, targets, count, average="macro"),
            "f2": lambda: tm.multiclass_fbeta_score(probabilities, targets, 2.0, count, average="macro"),
            "precision": lambda: tm.multiclass_precision(probabilities, targets, count, average="macro"),
            "recall": lambda: tm.multiclass_recall(probabilities, targets, count, average="macro"),
            "auc": lambda: tm.multiclass_auroc(probabilities, targets, count, average="macro"),
            "top_3": lambda: _top(probabilities, targets, 3),
            "top_5": lambda: _top(probabilities, targets, 5),
            "log_loss": lambda: -_log(probabilities.gather(1, targets[:, None])).mean(),
        }
    else:
        there = (targets > 0.5).long()
        several = {
            "f1": lambda: tm.multilabel_f1_score(probabilities, there, count, threshold, average="macro"),
            "f2": lambda: _f2_of_images(probabilities, there, threshold),
            "precision": lambda: tm.multilabel_precision(probabilities, there, count, threshold, average="macro"),
            "recall": lambda: tm.multilabel_recall(probabilities, there, count, threshold, average="macro"),
            "auc": lambda: tm.multilabel_auroc(probabilities, there, count, average="macro"),
            "log_loss": lambda: -torch.where(there > 0, _log(probabilities), _log(1 - probabilities)).mean(),
        }
    if name not in several:
        raise RecipeRefused(f"{name} is no score where an image has several labels", f"Choose {', '.join(several)}")
    return float(several[name]())


def best_threshold(probabilities: Tensor, targets: Tensor) -> float:
    """The probability from which a label is best given: the highest f2, and among equals the nearest to one half."""
    there = (targets > 0.5).long()
    return max(
        THRESHOLDS,
        key=lambda threshold: (
            round(float(_f2_of_images(probabilities, there, threshold)), 9),
            -abs(threshold - 0.5),
        ),
    )


def own(reference: str) -> Metric:
    """The function `package.module:name` that the person gave on the command line. Raises RecipeRefused.

    It is called with the probabilities (image, class) and the targets of a whole part, and gives a number. A recipe
    or a run directory can't name it (law 8): only the command line does.
    """
    module, _, name = reference.partition(":")
    try:
        found: Metric = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeRefused(
            f"There is no metric {reference}: {error}", "Write --metric package.module:function, importable from here"
        ) from error
    if not callable(found):
        raise RecipeRefused(f"The metric {reference} is no function", "Write --metric package.module:function")
    return found


def scores(
    names: Sequence[str], given: Sequence[tuple[str, Metric]], probabilities: Tensor, targets: Tensor, threshold: float
) -> dict[str, float]:
    """Every asked-for score by name, the person's own ones under theirs."""
    found = {name: named(name, probabilities, targets, threshold) for name in names}
    return found | {name: float(metric(probabilities, targets)) for name, metric in given}


def _top(probabilities: Tensor, targets: Tensor, k: int) -> Tensor:
    best = probabilities.topk(min(k, probabilities.shape[1]), dim=1).indices
    return (best == targets[:, None]).any(dim=1).double().mean()


def _f2_of_images(probabilities: Tensor, there: Tensor, threshold: float) -> Tensor:
    """Each image's F2 of its labels, averaged: what the Planet competition of 2017 scored."""
    given = probabilities >= threshold
    right = (given & (there > 0)).sum(dim=1).double()
    total = given.sum(dim=1) + 4 * there.sum(dim=1)
    # An image without labels that was given none is right.
    return torch.where(total > 0, 5 * right / total.clamp(min=1), torch.ones_like(right)).mean()


def _log(probabilities: Tensor) -> Tensor:
    """As scikit-learn's log_loss: a certainty that is wrong costs much, not infinitely much."""
    return probabilities.double().clamp(min=torch.finfo(torch.float32).eps).log()
