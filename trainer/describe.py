"""A recipe in words: its stages, their epochs, steps and rates. Needs no torch."""

import math
from collections.abc import Iterator

from trainer.recipe import Recipe
from trainer.schedules import SHAPES
from trainer.stage import Stage


def lines(recipe: Recipe, images: int | None) -> Iterator[str]:
    """What will happen, stage by stage. `images` is the number of training images, where it is known."""
    pretrained = "ImageNet weights" if recipe.pretrained is True else recipe.pretrained or "random weights"
    most = "at most " if any(stage.until_overfitting for stage in recipe.stages) else ""
    yield f"{recipe.name}: {recipe.about}"
    yield f"{recipe.arch}, {pretrained}, {most}{recipe.total_epochs} epochs, seed {recipe.seed}"
    for index, stage in enumerate(recipe.stages):
        yield ""
        yield f"stage {index} {stage.name}: {_how(stage)}"
        if stage.precompute:
            yield "  the activations of every image are computed once, or taken from the cache"
        if stage.lr == "find":
            sweep = f"{stage.find_batches} batches" if stage.find_batches else "one epoch"
            yield f"  the learning rate is looked for over {sweep}; rule: {stage.find}"
        yield from (f"  {words}" for words in _cycles(stage, images))
        if stage.until_overfitting:
            yield "  ends after a cycle whose validation loss rose while its training loss fell; the best cycle is kept"
    yield ""
    views = f", and with {recipe.tta} augmented views" if recipe.tta else ""
    together = ", and by all snapshots together" if any(stage.snapshots for stage in recipe.stages) else ""
    yield f"at the end: the validation part, and the test part if there is one, is classified{views}{together}"


def _how(stage: Stage) -> str:
    learns = {0: "all layer groups", -1: "the head"}.get(stage.freeze_to, f"layer groups from {stage.freeze_to}")
    shown = "precomputed activations" if stage.precompute else "augmented" if stage.augment else "not augmented"
    accumulated = f" × {stage.accumulate}" if stage.accumulate > 1 else ""
    return f"{learns}, {stage.size_px} px, {shown}, batches of {stage.batch_size}{accumulated}, {stage.optimizer}"


def _cycles(stage: Stage, images: int | None) -> Iterator[str]:
    start = 0
    for end in stage.cycle_ends():
        steps = ""
        if images is not None:
            per_epoch = math.ceil(images / stage.batch_size)
            steps = f", {math.ceil(per_epoch / stage.accumulate) * (end - start):,} steps"
        span = f"epoch {end}" if end == start + 1 else f"epochs {start + 1}–{end}"
        yield f"{span}{steps}: lr {_rate(stage)}"
        start = end


def _rate(stage: Stage) -> str:
    """The rate at a cycle's start, and where it goes."""
    share = SHAPES[stage.schedule](0.0)
    if isinstance(stage.lr, str):
        rate = "as found"
    elif isinstance(stage.lr, tuple):
        rate = " ".join(f"{lr * share:g}" for lr in stage.lr)
    else:
        rate = f"{stage.lr * share:g}"
    spread = f" in the head, {stage.spread:g} × less per earlier group" if stage.spread > 1 else ""
    if stage.schedule == "one_cycle":
        return f"{rate}{spread}, rising 25-fold over the first quarter, then falling along a cosine to 0"
    return f"{rate}{spread}, falling along a cosine to 0"
