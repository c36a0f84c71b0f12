"""A network's answer in words, as the CSV tables of a run and of `predict` have it."""

from collections.abc import Sequence

from torch import Tensor


def answer(classes: Sequence[str], row: Tensor, threshold: float | None) -> list[str]:
    """The predicted class, or all from the threshold on; the likeliest one's probability, and every class's."""
    given = [int(row.argmax())] if threshold is None else (row >= threshold).nonzero().flatten().tolist()
    return [words(classes, given), f"{row.max().item():.6f}", *(f"{each:.6f}" for each in row.tolist())]


def words(classes: Sequence[str], labels: Sequence[int]) -> str:
    return " ".join(classes[label] for label in labels)
