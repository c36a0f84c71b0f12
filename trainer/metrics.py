"""Scores of a whole part of the images, by torchmetrics: computed once, from every answer, never averaged over batches.

So neither the batch size nor the number of processes can change a score.
"""

import importlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
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


def check(names: Sequence[str], multi_label: bool) -> None:
    """Refuse scores that have no meaning for such labels. Raises RecipeRefused."""
    known = SEVERAL_LABELS if multi_label else ONE_LABEL
    for name in names:
        if name not in known:
            raise RecipeRefused(f"{name} is no score where an image has several labels", f"Choose {', '.join(known)}")


def named(name: str, probabilities: Tensor, targets: Tensor, threshold: float) -> float:
    """The score of that name in a recipe. Averages are over classes, except f2 of several labels: over images."""
    if targets.ndim == 1:
        return float(ONE_LABEL[name](probabilities, targets))
    return float(SEVERAL_LABELS[name](probabilities, (targets > 0.5).long(), threshold))


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
    except (ImportError, AttributeError, TypeError, ValueError) as error:
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
    return found | {name: _asked(name, metric, probabilities, targets) for name, metric in given}


def _asked(name: str, metric: Metric, probabilities: Tensor, targets: Tensor) -> float:
    """The person's own score; whatever goes wrong in it is theirs to mend."""
    try:
        found = float(metric(probabilities.clone(), targets.clone()))
    except Exception as error:
        what = f"The metric {name} failed: {type(error).__name__}: {error}"
        raise RecipeRefused(what, "Mend it; the run goes on with --resume") from error
    if not math.isfinite(found):
        raise RecipeRefused(f"The metric {name} gave {found}, which is no score", "Have it give a finite number")
    return found


def _top(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    def top(probabilities: Tensor, targets: Tensor) -> Tensor:
        best = probabilities.topk(min(k, probabilities.shape[1]), dim=1).indices
        return (best == targets[:, None]).any(dim=1).double().mean()

    return top


def _auc(probabilities: Tensor, there: Tensor) -> float:
    """The area under the ROC curve, each class against the rest, averaged; there (image, class) is 0 or 1.

    A class that no image has, or every one, has no curve and is left out; one half where that is so of all.
    """
    curved = [label for label in range(there.shape[1]) if 0 < int(there[:, label].sum()) < len(there)]
    areas = [float(tm.binary_auroc(probabilities[:, label], there[:, label])) for label in curved]
    return sum(areas) / len(areas) if areas else 0.5


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


def _given(probabilities: Tensor, threshold: float) -> Tensor:
    # torchmetrics would give a label only above the threshold; here and in `predict` it is given from it on.
    return (probabilities >= threshold).long()


ONE_LABEL: dict[str, Callable[[Tensor, Tensor], Tensor | float]] = {
    "f1": lambda p, t: tm.multiclass_f1_score(p, t, p.shape[1], average="macro"),
    "f2": lambda p, t: tm.multiclass_fbeta_score(p, t, 2.0, p.shape[1], average="macro"),
    "precision": lambda p, t: tm.multiclass_precision(p, t, p.shape[1], average="macro"),
    "recall": lambda p, t: tm.multiclass_recall(p, t, p.shape[1], average="macro"),
    "auc": lambda p, t: _auc(p, F.one_hot(t, p.shape[1])),
    "top_3": _top(3),
    "top_5": _top(5),
    "log_loss": lambda p, t: -_log(p.gather(1, t[:, None])).mean(),
}
SEVERAL_LABELS: dict[str, Callable[[Tensor, Tensor, float], Tensor | float]] = {
    "f1": lambda p, t, at: tm.multilabel_f1_score(_given(p, at), t, p.shape[1], average="macro"),
    "f2": _f2_of_images,
    "precision": lambda p, t, at: tm.multilabel_precision(_given(p, at), t, p.shape[1], average="macro"),
    "recall": lambda p, t, at: tm.multilabel_recall(_given(p, at), t, p.shape[1], average="macro"),
    "auc": lambda p, t, at: _auc(p, t),
    "log_loss": lambda p, t, at: -torch.where(t > 0, _log(p), _log(1 - p)).mean(),
}
