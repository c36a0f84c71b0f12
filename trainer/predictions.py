"""The last step: every image of the validation part, and of the test part where there is one, is classified.

Plain; with test-time augmentation (the plain view and n augmented ones, their probabilities averaged, as fast.ai 0.7
meant it: it averaged logarithms for some weeks and weighted the plain view by n); and by all snapshots together.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from trainer import engine, metrics, randomness, snapshots, transforms
from trainer.data.batches import Batches
from trainer.data.pixels import Pixels
from trainer.engine import Answers
from trainer.pace import EXACT
from trainer.plan import Predict
from trainer.run import Run
from trainer.state import State

BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A part's images, classified: probabilities (image, class) by way of predicting, the best way last."""

    part: str
    loss: float  # of the plain way
    targets: Tensor
    ways: dict[str, Tensor]  # plain, tta, ensemble, ensemble_tta: those that the recipe asks for
    threshold: float  # from which a label is given, where an image may have several
    scores: dict[str, dict[str, float]]  # of each way


def predict(run: Run, state: State, step: Predict) -> tuple[State, dict[str, Predicted]]:
    """The state after the last pass, and what was predicted. Each pass is kept: a stop loses one at most.

    In plain fp32 whatever the stages trained in, so that `python -m trainer predict` gives the same numbers.
    """
    EXACT.lay_out(run.network.module)
    models = (None, *state.snapshots)
    passes = list(product(run.parts, models, range(step.views + 1)))
    loaded: dict[str | None, nn.Module] = {None: run.network.module}
    for number, (part, model, view) in enumerate(passes[state.batch :], state.batch):
        if model not in loaded:
            loaded[model] = copy.deepcopy(run.network.module)
            assert model is not None
            snapshots.load(run.rundir, model, loaded[model])
        answers = _pass(run, loaded[model], run.parts[part], step.size_px, view)
        kept = {
            f"{part}/{model}/{view}": answers.probabilities,
            f"{part}/{model}/{view}/loss": torch.tensor(answers.loss),
        }
        state = replace(state, batch=number + 1, step_tensors=state.step_tensors | kept)
        run.keeper.after_step(partial(replace, state))
    threshold, state = _threshold(run, state)
    return state, {part: _predicted(run, state, step, part, threshold) for part in run.parts}


def shown(run: Run, pixels: Pixels, size_px: int, view: int) -> Callable[[Sequence[Sequence[int]]], Batches]:
    """To batches of the part's images: view 0 is the middle square, every other one is varied as for training."""
    if view == 0:
        return run.middles(pixels, size_px)

    def varied(image: Tensor, index: int) -> Tensor:
        random = randomness.view(run.recipe.seed, pixels.digests[index], view)
        return transforms.augmented(image, size_px, run.recipe.augmentation, random)

    return lambda parts: run.batches(pixels, parts, varied)


def _pass(run: Run, module: nn.Module, pixels: Pixels, size_px: int, view: int) -> Answers:
    module.eval()

    def scores(images: Tensor) -> Tensor:
        found: Tensor = module(EXACT.laid_out(run.normalise(images)))
        return found

    views = shown(run, pixels, size_px, view)
    return engine.evaluate(scores, views, len(pixels), BATCH, run.team, run.keeper.beat)


def _threshold(run: Run, state: State) -> tuple[float, State]:
    """The recipe's, or the best on the validation part by the plain way, which is then no final score of that part."""
    if not run.multi_label:
        return 0.5, state
    if not isinstance(run.recipe.threshold, str):
        return float(run.recipe.threshold), state
    found = metrics.best_threshold(state.step_tensors["valid/None/0"], run.valid.targets)
    return found, replace(state, selected_by=(*state.selected_by, f"the threshold {found:g}, by its F2"))


def _predicted(run: Run, state: State, step: Predict, part: str, threshold: float) -> Predicted:
    def mean(models: tuple[str | None, ...], views: range) -> Tensor:
        every = [state.step_tensors[f"{part}/{model}/{view}"].double() for model in models for view in views]
        return torch.stack(every).mean(dim=0).float()

    one, every = range(1), range(step.views + 1)
    ways = {"plain": mean((None,), one)}
    if step.views:
        ways["tta"] = mean((None,), every)
    # The last snapshot is the final network itself, unless other stages followed: it must not count twice.
    if state.snapshots:
        ways["ensemble"] = mean(state.snapshots, one)
    if step.views and state.snapshots:
        ways["ensemble_tta"] = mean(state.snapshots, every)
    targets = run.parts[part].targets
    return Predicted(
        part=part,
        loss=float(state.step_tensors[f"{part}/None/0/loss"]),
        targets=targets,
        ways=ways,
        threshold=threshold,
        scores={name: run.score(probabilities, targets, threshold) for name, probabilities in ways.items()},
    )
