"""`python -m trainer benchmark`: what limits a stage on this computer, its images, its network or both together.

Three numbers of each kind of work that a stage has, in images/s: batches made and thrown away; one batch worked on
again and again; both together, as in a run. It is the run's own code on the run's own images, cache included, but the
learning rate is 0 and nothing is kept: the run directory is a temporary one.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import engine, features, lesson, memory, opening, pace
from trainer.data import batches
from trainer.data.batches import Batches
from trainer.distributed import Team
from trainer.errors import RecipeRefused
from trainer.keeper import Keeper
from trainer.lesson import Lesson
from trainer.opening import Options
from trainer.pace import Pace
from trainer.plan import Train
from trainer.recipe import Recipe
from trainer.report import VERSIONS
from trainer.run import Run
from trainer.rundir import RunDir
from trainer.state import State
from trainer.trainee import Trainee

WARM_UP_STEPS = 2  # the first step of a shape compiles its kernels, and the first of an optimizer makes its tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One kind of work, in images/s."""

    work: str  # "activations" or "training"
    pace: str
    steps: int
    loader_images_per_s: float
    step_images_per_s: float
    together_images_per_s: float
    data_wait_fraction: float  # of the time together, spent waiting for images

    def line(self) -> str:
        return (
            f"{self.work:<12} loader only {self.loader_images_per_s:,.0f} img/s, "
            f"step only {self.step_images_per_s:,.0f} img/s, together {self.together_images_per_s:,.0f} img/s, "
            f"waiting for data {self.data_wait_fraction:.0%}; {self.pace}; {self.steps} steps"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured of a stage, and on what."""

    recipe: str
    arch: str
    stage: str
    size_px: int
    batch_size: int
    device: str
    threads: int
    loader_threads: int
    speeds: tuple[Speed, ...]
    peak_memory_bytes: int
    versions: dict[str, str]

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.recipe}, stage {self.stage}: {self.arch}, {self.size_px} px, batches of {self.batch_size}, "
            f"{self.device}, {self.loader_threads} loader threads"
        )
        yield from (speed.line() for speed in self.speeds)
        yield f"peak memory  {self.peak_memory_bytes / 2**20:,.0f} MiB"

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def benchmark(recipe: Recipe, options: Options, stage_index: int, steps: int) -> Report:
    """Measure a stage over that many steps. `options.out` is not used. Raises TrainerError."""
    if stage_index >= len(recipe.stages):
        what = f"{recipe.name} has no stage {stage_index}"
        raise RecipeRefused(what, f"Give --stage 0 to {len(recipe.stages) - 1}: see python -m trainer describe")
    stage = recipe.stages[stage_index]
    with tempfile.TemporaryDirectory(prefix="trainer-benchmark.") as folder:
        rundir = RunDir(Path(folder))
        keeper = Keeper(rundir, inf, options.check_stop, agreed=bool)
        team = Team(device=torch.device(options.device.torch_name))
        run, _ = opening.opened(recipe, options, team, rundir, keeper)
        run.network.freeze_to(stage.freeze_to, stage.freeze_norm)
        chosen, _ = pace.choose(run.network, stage, run.torch_device, run.cache)
        speeds = []
        if stage.precompute:
            speeds.append(_activations(run, stage_index, chosen, steps))
        speeds.append(_training(run, stage_index, chosen, steps))
    return Report(
        recipe=recipe.name,
        arch=recipe.arch,
        stage=stage.name,
        size_px=stage.size_px,
        batch_size=stage.batch_size,
        device=run.device.name,
        threads=torch.get_num_threads(),
        loader_threads=run.workers,
        speeds=tuple(speeds),
        peak_memory_bytes=engine.peak_memory_bytes(run.torch_device),
        versions=VERSIONS,
    )


def _activations(run: Run, stage_index: int, chosen: Pace, steps: int) -> Speed:
    """What a stage that precomputes does once for every image."""
    stage = run.recipe.stages[stage_index]
    body = features.frozen_body(run, stage, chosen)

    def work(shown: Batches) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for images, _ in shown:
                body(run.normalise(images)).cpu()
        return time.perf_counter() - started

    parts = _repeated(batches.parts(range(len(run.train)), features.BATCH), steps)
    return _speed("activations", chosen, run.middles(run.train, stage.size_px), parts, run.train.targets, work)


def _training(run: Run, stage_index: int, chosen: Pace, steps: int) -> Speed:
    """A training step, on images or on what was precomputed of them."""
    step = Train(stage_index=stage_index, stage=run.recipe.stages[stage_index])
    chosen.lay_out(run.network.module)
    rates = step.stage.lr if not isinstance(step.stage.lr, str) else 1.0
    trainee = Trainee(run.network, step.stage, rates, chosen, run.team)
    taught = lesson.of(run, State(paces={stage_index: chosen}), step, trainee)

    def work(shown: Batches) -> float:
        started = time.perf_counter()
        engine.train_epoch(
            trainee,
            shown,
            partial(taught.loss_of, 0),
            rate_at=lambda _: 0.0,
            after_step=lambda _: None,
            sizes=[len(part) for part in shown.parts],
            accumulate=step.stage.accumulate,
        )
        return time.perf_counter() - started

    parts = _repeated(taught.training_batches(0), steps)
    with memory.explained(run, taught):
        return _speed("training", chosen, partial(_shown, taught), parts, run.train.targets, work)


def _shown(taught: Lesson, parts: Sequence[Sequence[int]]) -> Batches:
    return taught.shown(0, [list(part) for part in parts])


def _repeated(parts: Sequence[Sequence[int]], steps: int) -> list[Sequence[int]]:
    """The first `steps` batches, of an epoch that begins again where it is shorter."""
    return list(itertools.islice(itertools.cycle(parts), steps))


def _speed(
    work: str,
    chosen: Pace,
    shown: Callable[[Sequence[Sequence[int]]], Batches],
    parts: Sequence[Sequence[int]],
    targets: Tensor,
    seconds_of: Callable[[Batches], float],
) -> Speed:
    [(inputs, _)] = list(shown(parts[:1]))
    same = [parts[0]] * len(parts)

    def cached(count: int) -> Batches:
        return Batches(same[:count], targets, lambda _: inputs, workers=0)

    seconds_of(cached(WARM_UP_STEPS))
    started = time.perf_counter()
    for _ in shown(parts):
        pass
    loader_s = time.perf_counter() - started
    step_s = seconds_of(cached(len(parts)))
    together = shown(parts)
    together_s = seconds_of(together)
    images = sum(len(part) for part in parts)
    return Speed(
        work=work,
        pace=str(chosen),
        steps=len(parts),
        loader_images_per_s=images / loader_s,
        step_images_per_s=len(parts[0]) * len(parts) / step_s,
        together_images_per_s=images / together_s,
        data_wait_fraction=together.waited_s / together_s,
    )
