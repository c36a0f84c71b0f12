"""The learning-rate finder: a sweep of rates on a copy of the network, the curve of its loss, and what it suggests.

fast.ai 0.7's `lr_find` (Smith, "Cyclical Learning Rates", arXiv:1506.01186, section 3.3), which left the random state
and the order of the images changed. Here all randomness is addressed and the network is a copy: no trace is left.

One batch is harder than another: where a network has learned already, its loss differs more between batches than the
rate changes it. So each batch is shown to a second copy too, which learns nothing, and what counts is the difference.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer import engine, lesson, memory, report, schedules
from trainer.checkpoint import below, under
from trainer.errors import Diverged
from trainer.lesson import Lesson
from trainer.plan import Find
from trainer.randomness import FINDER_EPOCH
from trainer.run import Run
from trainer.state import State
from trainer.trainee import Trainee

LOWEST, HIGHEST = 1e-5, 10.0  # fast.ai 0.7's sweep
FEWEST = 50  # batches: a curve of fewer points shows nothing
GIVE_UP = 4.0  # times the best loss: fast.ai 0.7's
COPY = "network/"


class _Over(Exception):
    """The loss has risen so far that higher rates would show nothing."""


def find(run: Run, state: State, step: Find) -> State:
    """The state with the stage's rate chosen. Raises Diverged where no loss is a number."""
    stage = step.stage
    run.network.freeze_to(stage.freeze_to, stage.freeze_norm)
    network = copy.deepcopy(run.network)
    trainee = Trainee(network, stage, 1.0, state.paces[step.stage_index], run.team)
    trainee.pace.lay_out(network.module)
    losses: list[float] = []
    unlearned: list[float] = []
    if state.step_tensors:
        network.module.load_state_dict(below(COPY, state.step_tensors))
        trainee.restore(state.step_tensors, state.scaler)
        losses = state.step_tensors["losses"].tolist()
        unlearned = state.step_tensors["unlearned"].tolist()
    taught = lesson.of(run, state, step, trainee)
    beside = lesson.of(run, state, step, Trainee(copy.deepcopy(run.network), stage, 1.0, trainee.pace, run.team))
    beside.trainee.network.train()
    parts = _sweep(taught)

    def loss_of(batch: int, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = taught.loss_of(FINDER_EPOCH, batch, inputs, targets)
        with torch.no_grad():
            same = beside.loss_of(FINDER_EPOCH, batch, inputs, targets)
        # Here the device is waited for: a sweep is short.
        losses.append(run.team.mean(loss.detach()).item())
        unlearned.append(run.team.mean(same).item())
        return loss

    def over() -> bool:
        return is_over(curve_of(losses, unlearned, len(parts)), len(parts))

    def after_step(batch: int) -> None:
        run.keeper.after_step(lambda: _at(state, trainee, losses, unlearned))
        if over():
            raise _Over

    if not over():  # a run that was cut after the sweep's last batch does none after it
        with memory.explained(run, taught), contextlib.suppress(_Over):
            engine.train_epoch(
                trainee,
                taught.shown(FINDER_EPOCH, parts[state.batch :]),
                loss_of,
                rate_at=lambda batch: rate(batch, len(parts)),
                after_step=after_step,
                sizes=[len(part) for part in parts[state.batch :]],
                first=state.batch,
            )
    rates = [rate(batch, len(parts)) for batch in range(len(losses))]
    curve = curve_of(losses, unlearned, len(parts))
    found = suggestions(rates, curve)
    if stage.find not in found:
        what = f"The loss was no number from the lowest rate on, {LOWEST:g}, in stage {stage.name!r}"
        raise Diverged(what, "Look at the images and weights; a lower rate will not mend it")
    report.finder(run.rundir, step.stage_index, stage, rates, curve, found)
    return replace(state, rates=state.rates | {step.stage_index: found[stage.find]})


def rate(batch: int, count: int) -> float:
    """The sweep's rate at a batch: from 1e-5 to 10, each batch's a constant times the one before."""
    return schedules.exponential(batch / max(count - 1, 1), LOWEST, HIGHEST)


def curve_of(losses: Sequence[float], unlearned: Sequence[float], count: int) -> list[float]:
    """The loss over the sweep: what the network had before it on average, and the smoothed change since.

    `unlearned` are the same batches' losses without the sweep; `count` is the number of batches that it may have.
    """
    if not losses:
        return []
    before = sum(unlearned) / len(unlearned)
    changes = smoothed([loss - same for loss, same in zip(losses, unlearned, strict=True)], count)
    return [max(before + change, before / 100) for change in changes]


def smoothed(losses: Sequence[float], count: int) -> list[float]:
    """Each loss averaged exponentially with those before it, over about a twentieth of the sweep's `count` batches.

    fast.ai 0.7 averages over fifty batches, however long the sweep: in a short one the curve lags so far behind that
    its minimum stands at a rate that is several times too high.
    """
    keep = max(1 - 20 / count, 0.0)
    average, curve = 0.0, []
    for number, loss in enumerate(losses, 1):
        average = keep * average + (1 - keep) * loss
        curve.append(average / (1 - keep**number))
    return curve


def is_over(losses: Sequence[float], count: int) -> bool:
    """Whether the sweep has shown all it can: no number, or four times the best loss.

    Not within its first tenth, where a lucky first batch would end it at once: fast.ai 0.7 had to add such a rule.
    """
    if not losses:
        return False
    if not math.isfinite(losses[-1]):
        return True
    return len(losses) > count / 10 and losses[-1] > GIVE_UP * min(losses)


def suggestions(rates: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Rates by name, from a smoothed curve.

    `minimum` is a tenth of the highest rate at which the loss is above its lowest by no more than a tenth of the first.
    (fastai 2 takes the lowest itself: where a network has learned already the curve is flat, and that anywhere in it.)
    `valley` is the middle of the longest stretch over which the loss falls (fastai 2's: its longest decreasing
    subsequence). Empty where fewer than two losses are numbers.
    """
    curve = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    if len(curve) < 2:
        return {}
    lowest = min(loss for _, loss in curve)
    minimum = max(rate for rate, loss in curve if loss <= lowest + 0.1 * curve[0][1])
    falling = _longest_fall([loss for _, loss in curve])
    return {"minimum": minimum / 10, "valley": curve[(falling[0] + falling[-1]) // 2][0]}


def _longest_fall(losses: Sequence[float]) -> list[int]:
    """The indices of the longest decreasing subsequence, by patience sorting: n log n."""
    piles: list[int] = []  # the index of the highest last value of a fall of each length
    before: list[int] = []
    end = 0
    for index, loss in enumerate(losses):
        low, high = 0, len(piles)
        while low < high:
            middle = (low + high) // 2
            if losses[piles[middle]] > loss:
                low = middle + 1
            else:
                high = middle
        before.append(piles[low - 1] if low else -1)
        if low == len(piles):
            end = index  # of the first fall that is so long
        piles[low : low + 1] = [index]
    found = [end]
    while before[found[-1]] >= 0:
        found.append(before[found[-1]])
    return found[::-1]


def _sweep(taught: Lesson) -> list[list[int]]:
    """The sweep's batches: the asked-for number, or an epoch's, from as many passes over the images as that needs."""
    once = taught.training_batches(FINDER_EPOCH)
    count = taught.stage.find_batches or max(len(once), FEWEST)
    passes = (taught.training_batches(FINDER_EPOCH - number) for number in range(1, math.ceil(count / len(once))))
    return list(itertools.chain(once, *passes))[:count]


def _at(state: State, trainee: Trainee, losses: list[float], unlearned: list[float]) -> State:
    tensors = trainee.tensors() | under(COPY, trainee.network.module.state_dict())
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors["unlearned"] = torch.tensor(unlearned, dtype=torch.float64)
    return replace(state, batch=len(losses), step_tensors=tensors, scaler=trainee.scaler.state_dict())
