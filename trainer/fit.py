"""A recipe's steps, run in order. Read this first: `fit` is the whole story, top to bottom."""

import time
from dataclasses import fields, replace
from typing import Any

import torch

import trainer
from trainer import (
    checkpoint,
    distributed,
    features,
    lr_finder,
    opening,
    outputs,
    pace,
    plan,
    predictions,
    report,
    snapshots,
    training,
)
from trainer.checkpoint import Checkpoint
from trainer.distributed import Team
from trainer.errors import RunDirRefused
from trainer.history import Epoch
from trainer.keeper import NETWORK, STEP, Keeper
from trainer.opening import Options
from trainer.plan import Find, Precompute, Train
from trainer.recipe import Recipe
from trainer.run import Run
from trainer.rundir import RunDir
from trainer.state import State


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
    run, loaded = opening.opened(recipe, options, team, rundir, keeper)
    keeper.of(run.network.module, _identity(run))
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
    run.network.freeze_to(step.stage.freeze_to, step.stage.freeze_norm)
    with run.team.lead_first():
        chosen, measured = pace.choose(run.network, step.stage, run.torch_device, run.cache)
    report.paced(run.rundir, step.stage, chosen, measured)
    return replace(state, paces=state.paces | {step.stage_index: chosen})


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
