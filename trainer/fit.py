"""A recipe's stages, run in order. Read this first: `fit` is the whole story, top to bottom."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from trainer import checkpoint, data, engine, models, optimizer, randomness, report, transforms, weights
from trainer.checkpoint import Checkpoint, Position
from trainer.data.batches import Batches
from trainer.data.pixels import Pixels, decode_all
from trainer.device import Device
from trainer.engine import Evaluated, Trained
from trainer.errors import BrokenImages, DataRefused, Diverged, OutOfMemory, RunDirRefused
from trainer.history import Epoch
from trainer.randomness import Draw
from trainer.recipe import Recipe, Stage
from trainer.run import Run
from trainer.rundir import RunDir
from trainer.schedules import warm_restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far a run has come. The network's weights, which change in place, belong to it."""

    stage_index: int = 0
    epoch: int = 0  # epochs finished in that stage
    history: tuple[Epoch, ...] = ()
    evaluated: Evaluated | None = None  # the last epoch's answers on the validation set
    resumed_from: Checkpoint | None = None  # whose momentum the stage that was interrupted takes up again


def fit(
    recipe: Recipe,
    *,
    source: str,
    out: Path,
    device: Device,
    workers: int,
    strict: bool = False,
    resume: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> None:
    """Train what the recipe says on the images at `source`, and leave everything in the run directory `out`.

    `check_stop` is called after every step and may end the run by raising Stopped. Raises TrainerError.
    """
    started = time.monotonic()
    rundir = RunDir(out)
    saved = _saved(rundir, resume)

    def on_step() -> None:
        rundir.beat()
        check_stop()

    samples = data.find(source or recipe.data.source, recipe.data)
    randomness.seed_everything(recipe.seed)
    network = models.build(recipe.arch, len(samples.classes))
    models.check(network, recipe)
    loaded = weights.load_pretrained(network, recipe.arch, recipe.pretrained) if recipe.pretrained else None
    network.module.to(device.torch_name)

    # Decoded once, at the largest size that any stage asks for; the training images with room to zoom in.
    size_px = max(stage.size_px for stage in recipe.stages)
    train, lost_train = decode_all(samples.train, round(size_px * recipe.augmentation.zoom_max), out, workers, on_step)
    valid, lost_valid = decode_all(samples.valid, size_px, out, workers, on_step)
    lost = (*lost_train, *lost_valid)
    report.found(rundir, samples, lost)
    if lost and strict:
        raise BrokenImages(f"{len(lost)} images cannot be decoded", "Repair or remove them, or leave out --strict")
    _check_classes(samples.classes, train, "training")
    _check_classes(samples.classes, valid, "validation")

    run = Run(
        recipe=recipe,
        rundir=rundir,
        device=device,
        network=network,
        classes=samples.classes,
        train=train,
        valid=valid,
        unreadable=lost,
        workers=workers,
        on_step=on_step,
    )
    state = _resumed(run, saved) if saved else State()
    report.opened(run, loaded, epochs_done=len(state.history))

    for stage in recipe.stages[state.stage_index :]:
        state = run_stage(run, state, stage)

    evaluated = state.evaluated or _evaluate(run, recipe.stages[-1])  # resumed after its last epoch
    report.closed(run, state.history, evaluated, seconds=time.monotonic() - started)


def run_stage(run: Run, state: State, stage: Stage) -> State:
    """The state after the stage's remaining epochs, with a checkpoint on disk after each of them.

    The optimizer is new, as in fast.ai 0.7: no momentum is carried from one stage to the next.
    """
    run.network.freeze_to(stage.freeze_to)
    stepper = optimizer.build(run.network, stage)
    if state.resumed_from:
        checkpoint.restore_optimizer(stepper, state.resumed_from.optimizer)
    for epoch in range(state.epoch, stage.total_epochs):
        started = time.perf_counter()
        try:
            trained = _train(run, state.stage_index, stage, epoch, stepper)
            evaluated = _evaluate(run, stage)
        except torch.OutOfMemoryError as error:
            what = f"{stage.batch_size} images at {stage.size_px} px do not fit into the memory of {run.device.name}"
            raise OutOfMemory(what, f"Halve it: --set batch_size={max(stage.batch_size // 2, 1)}") from error
        if not isfinite(trained.loss) or not isfinite(evaluated.loss):
            what = f"The loss is no longer a number in stage {stage.name!r}, epoch {epoch + 1}"
            raise Diverged(what, "Lower the learning rate, to a tenth at first: --set lr=…")
        measured = Epoch(
            stage=stage.name,
            stage_index=state.stage_index,
            epoch=epoch + 1,
            epochs=stage.total_epochs,
            steps=trained.steps,
            train_loss=trained.loss,
            valid_loss=evaluated.loss,
            accuracy=evaluated.accuracy,
            lr=run.head_rates[state.stage_index] * _rate_share(stage, epoch, trained.steps, 0),
            images_per_s=trained.images_per_s,
            data_wait_fraction=trained.data_wait_fraction,
            seconds=time.perf_counter() - started,
        )
        state = replace(state, epoch=epoch + 1, history=(*state.history, measured), evaluated=evaluated)
        report.epoch(run.rundir, measured)
        _save(run, state, stepper)
        run.on_step()
    return State(stage_index=state.stage_index + 1, history=state.history, evaluated=state.evaluated)


def _train(run: Run, stage_index: int, stage: Stage, epoch: int, stepper: torch.optim.Optimizer) -> Trained:
    seed = run.recipe.seed
    randomness.seed_epoch(seed, stage_index, epoch)

    def varied(image: Tensor, index: int) -> Tensor:
        if not stage.augment:
            return transforms.validation(image, stage.size_px)
        random = randomness.generator(Draw.AUGMENTATION, seed, stage_index, epoch, index)
        return transforms.augmented(image, stage.size_px, run.recipe.augmentation, random)

    order = randomness.epoch_order(len(run.train), seed, stage_index, epoch)
    batches = Batches(run.train, order, stage.batch_size, varied, run.workers)
    rate_at = partial(_rate_share, stage, epoch, len(batches))
    return engine.train_epoch(run.network, stepper, batches, rate_at, run.normalise, run.torch_device, run.on_step)


def _evaluate(run: Run, stage: Stage) -> Evaluated:
    def middle(image: Tensor, index: int) -> Tensor:
        return transforms.validation(image, stage.size_px)

    batches = Batches(run.valid, range(len(run.valid)), stage.batch_size, middle, run.workers)
    return engine.evaluate(run.network, batches, len(run.classes), run.normalise, run.torch_device, run.on_step)


def _rate_share(stage: Stage, epoch: int, steps_per_epoch: int, step: int) -> float:
    """The share of the highest learning rate at a step of an epoch of the stage."""
    return warm_restarts(epoch * steps_per_epoch + step, stage.first_cycle_epochs * steps_per_epoch, stage.cycle_mult)


def _check_classes(classes: Sequence[str], pixels: Pixels, part: str) -> None:
    """A class may have lost all its images to damage."""
    if gone := [name for label, name in enumerate(classes) if label not in set(pixels.labels)]:
        raise DataRefused(f"No {part} image of {', '.join(gone)} can be decoded", "Repair the files named above")


def _saved(rundir: RunDir, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, if any; without one, what an earlier try recorded is forgotten."""
    if rundir.checkpoint.exists():
        if not resume:
            raise RunDirRefused(
                f"{rundir.root} holds a run already", "Give --resume to go on with it, or another --out"
            )
        return checkpoint.read(rundir.checkpoint)
    rundir.cut_metrics(0)
    return None


def _save(run: Run, state: State, stepper: torch.optim.Optimizer) -> None:
    position = Position(
        stage_index=state.stage_index,
        epoch=state.epoch,
        metrics_bytes=run.rundir.metrics.stat().st_size,
        threads=torch.get_num_threads(),
        recipe_sha256=run.recipe.sha256,
        images_sha256=run.images_sha256,
    )
    checkpoint.write(run.rundir.checkpoint, run.network.module, stepper, position)


def _resumed(run: Run, saved: Checkpoint) -> State:
    """The state that the checkpoint stands for, its weights put into the network."""
    position = saved.position
    for what, saved_sha256, sha256 in (
        ("recipe", position.recipe_sha256, run.recipe.sha256),
        ("image set", position.images_sha256, run.images_sha256),
    ):
        if saved_sha256 != sha256:
            raise RunDirRefused(
                f"{run.rundir.root} holds a run with another {what}", f"Give it the same {what}, or another --out"
            )
    run.rundir.cut_metrics(position.metrics_bytes)
    run.network.module.load_state_dict(saved.network)
    history = tuple(
        Epoch(**{key: event[key] for key in (spec.name for spec in fields(Epoch))})
        for event in run.rundir.events("epoch")
    )
    if position.threads != torch.get_num_threads():
        report.say(
            f"resumed with {torch.get_num_threads()} threads instead of {position.threads}: last digits may differ"
        )
    return State(stage_index=position.stage_index, epoch=position.epoch, history=history, resumed_from=saved)
