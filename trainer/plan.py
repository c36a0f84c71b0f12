"""What a recipe comes to: its stages taken apart into steps, run in this order. Every kind has the same checkpoint."""

from dataclasses import dataclass

from trainer.recipe import Recipe
from trainer.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Precompute:
    """Compute and keep what the frozen part of the network makes of each image at a stage's size."""

    stage_index: int
    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """Look for a stage's learning rate."""

    stage_index: int
    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train a stage's epochs."""

    stage_index: int
    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict:
    """Classify the validation part and, where there is one, the test part: plain, augmented, and by all snapshots."""

    size_px: int
    views: int  # augmented ones, beside the plain one


Step = Precompute | Find | Train | Predict


def steps(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of the recipe, in order."""
    made: list[Step] = []
    for index, stage in enumerate(recipe.stages):
        if stage.precompute:
            made.append(Precompute(stage_index=index, stage=stage))
        if stage.lr == "find":
            made.append(Find(stage_index=index, stage=stage))
        made.append(Train(stage_index=index, stage=stage))
    made.append(Predict(size_px=recipe.stages[-1].size_px, views=recipe.tta))
    return tuple(made)
