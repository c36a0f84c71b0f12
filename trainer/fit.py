"""A recipe's steps, run in order. Read this first: `fit` is the whole story, top to bottom."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

import trainer
from trainer import (
    checkpoint,
    data,
    distributed,
    features,
    lr_finder,
    metrics,
    models,
    outputs,
    pace,
    plan,
    predictions,
    randomness,
    report,
    snapshots,
    training,
    weights,
)
from trainer.checkpoint import Checkpoint
from trainer.data import pixels
from trainer.data.pixels import Pixels
from trainer.device import Device
from trainer.distributed import Team
from trainer.errors import BrokenImages, DataRefused, RunDirRefused
from trainer.history import Epoch
from trainer.keeper import NETWORK, STEP, Keeper
from trainer.plan import Find, Precompute, Train
from trainer.recipe import Recipe
from trainer.run import Run
from trainer.rundir import RunDir
from trainer.state import State

CHECKPOINT_EVERY_S = 60.0  # what a power cut may cost; a request to stop costs nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is given beside its recipe: none of it changes the result on the same kind of machine."""

    source: str
    out: Path
    device: Device
    workers: int
    cache: Path
    strict: bool = False
    resume: bool = False
    exact: bool = False
    given_metrics: Sequence[str] = ()
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    check_stop: Callable[[], None] = lambda: None


def fit(recipe: Recipe, options: Options) -> None:
    """Train what the recipe says on the images at `source`, and leave everything in the run directory `out`.

    `check_stop` is called after every step and may end the run by raising Stopped. Raises TrainerError.
    """
    with distributed.team_of(options.device, options.out) as (team, device, out):
        _fit(recipe, replace(options, device=device, out=out), team)


def _fit(recipe: Recipe, options: Options, team: Team) -> None:
    started = time.monotonic()
    if team.device.type == "cpu":
        report.say("training on the CPU, as --allow-cpu says")
    rundir = RunDir(options.out)
    saved = _saved(rundir, options.resume)
    keeper = Keeper(rundir, options.checkpoint_every_s, options.check_stop, team.any)
    given = tuple((reference, metrics.own(reference)) for reference in options.given_metrics)

    samples = data.find(options.source or recipe.data.source, recipe.data)
    metrics.check(recipe.metrics, samples.multi_label)
    randomness.seed_everything(recipe.seed)
    network = models.build(recipe.arch, len(samples.classes), recipe.head)
    models.check(network, recipe)
    loaded = weights.load_pretrained(network, recipe.pretrained) if recipe.pretrained else None
    network.module.to(options.device.torch_name)

    # Decoded once, at the largest size that any stage asks for, with room to zoom in.
    decoded_px = round(max(stage.size_px for stage in recipe.stages) * recipe.augmentation.zoom_max)
    decoded: dict[str, Pixels] = {}
    lost: list[pixels.Unreadable] = []
    with team.lead_first():
        for name, part in samples.parts.items():
            decoded[name], unreadable = pixels.load(
                part, len(samples.classes), samples.multi_label, decoded_px, options.cache, options.workers, keeper.beat
            )
            lost += unreadable
    report.found(rundir, samples, lost)
    if lost and options.strict:
        raise BrokenImages(f"{len(lost)} images cannot be decoded", "Repair or remove them, or leave out --strict")
    if not samples.multi_label:
        _check_classes(samples.classes, decoded["train"], "training")
        _check_classes(samples.classes, decoded["valid"], "validation")
    report.duplicates(rundir, decoded)

    run = Run(
        recipe=recipe,
        rundir=rundir,
        keeper=keeper,
        device=options.device,
        team=team,
        network=network,
        classes=samples.classes,
        multi_label=samples.multi_label,
        labels_why=samples.why,
        train=decoded["train"],
        valid=decoded["valid"],
        test=decoded.get("test"),
        unreadable=tuple(lost),
        decoded_px=decoded_px,
        workers=options.workers,
        cache=options.cache,
        given_metrics=given,
    )
    keeper.of(network.module, _identity(run))
    state = _resumed(run, saved, options.exact) if saved else State()
    report.opened(run, loaded, epochs_done=len(state.history), resumed=saved is not None)

    for step in plan.steps(recipe)[state.step :]:
        if isinstance(step, plan.Predict):
            state, predicted = predictions.predict(run, state, step)
            outputs.closed(run, state, predicted, seconds=time.monotonic() - started)
            return
        state = _ran(run, _paced(run, state, step), step)
        state = replace(state, step=state.step + 1, epoch=0, batch=0, cycles=(), scaler={}, step_tensors={})
        keeper.save(state)
        snapshots.forget(rundir, but=state.snapshots)


def _ran(run: Run, state: State, step: Precompute | Find | Train) -> State:
    match step:
        case Precompute():
            return features.precompute(run, state, step)
        case Find():
            return lr_finder.find(run, state, step)
        case Train():
            return training.train(run, state, step)


def _paced(run: Run, state: State, step: Precompute | Find | Train) -> State:
    """The state with the stage's pace decided, once for all its steps."""
    if step.stage_index in state.paces:
        return state
    run.network.freeze_to(step.stage.freeze_to)
    with run.team.lead_first():
        chosen, measured = pace.choose(run.network, step.stage, run.torch_device, run.cache)
    report.paced(run.rundir, step.stage, chosen, measured)
    return replace(state, paces=state.paces | {step.stage_index: chosen})


def _check_classes(classes: Sequence[str], part: Pixels, name: str) -> None:
    """A class may have lost all its images to damage."""
    present = {label for labels in part.labels for label in labels}
    if gone := [name for label, name in enumerate(classes) if label not in present]:
        raise DataRefused(f"No {name} image of {', '.join(gone)} can be decoded", "Repair the files named above")


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


def _identity(run: Run) -> dict[str, Any]:
    """What the run is a run of, and what it computes with."""
    return {
        "recipe": run.recipe.sha256,
        "labels": "multi" if run.multi_label else "single",
        "images": run.images_sha256,
        "metrics": [name for name, _ in run.given_metrics],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "trainer": trainer.__version__,
        "device": run.device.name,
    }


def _resumed(run: Run, saved: Checkpoint, exact: bool) -> State:
    """The state that the checkpoint stands for, its weights put into the network. Raises RunDirRefused."""
    try:
        identity, metrics_bytes = dict(saved.values["identity"]), int(saved.values["metrics_bytes"])
        _check_identity(run, identity, exact)
        run.rundir.cut_metrics(metrics_bytes)
        known = {spec.name for spec in fields(Epoch)}
        history = tuple(
            Epoch(**{key: value for key, value in event.items() if key in known})
            for event in run.rundir.events("epoch")
        )
        state = State.of(saved.values["state"], checkpoint.below(STEP, saved.tensors), history)
        run.network.module.load_state_dict(checkpoint.below(NETWORK, saved.tensors))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"The checkpoint {run.rundir.checkpoint} cannot be read: {error}"
        raise RunDirRefused(what.splitlines()[0], "Delete it to start over") from error
    return state


def _check_identity(run: Run, identity: dict[str, Any], exact: bool) -> None:
    here = _identity(run)
    for key, what in (
        ("labels", "kind of labels"),
        ("recipe", "recipe"),
        ("images", "image set"),
        ("metrics", "metric"),
    ):
        if identity[key] != here[key]:
            more = f" ({identity[key]} labels)" if key == "labels" else ""
            more = f" ({', '.join(identity[key]) or 'none'})" if key == "metrics" else more
            next_step = f"Give it the same {what}, or another --out"
            raise RunDirRefused(f"{run.rundir.root} holds a run with another {what}{more}", next_step)
    for key in ("threads", "torch", "trainer", "device"):
        if identity[key] != here[key]:
            difference = f"resumed with {key} {here[key]} instead of {identity[key]}"
            if exact:
                raise RunDirRefused(f"It would be {difference}, and --exact was given", "Leave out --exact to go on")
            report.say(f"{difference}: last digits may differ")
