"""`gpuops train`, `attach`, `pull`, `runs`: a run's life."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuops import cost
from gpuops.cli import options, plan, screen
from gpuops.cli.options import resolve
from gpuops.errors import RunError

if TYPE_CHECKING:
    from gpuops.lifecycle import Plan
    from gpuops.runs import Run
    from gpuops.settings import Settings
    from gpuops.workflow import Finished

_DETACHED_EXIT_CODE = 130
# What the trainer knows by name; every other word is a place on this computer.
_NAMED = ("digits", "imagenet")
_AFTERWARDS = {
    "stop": "when the results are home, the machine is stopped (--keep leaves it running)",
    "terminate": "when the results are home, the machine is deleted",
    "keep": "it is left running, and billing",
}


@click.command(short_help="Train, bring the results home, stop the machine.")
@click.argument("recipe", required=False, default="digits")
@click.option("--data", help="A folder of images (train/CLASS/*.jpg, valid/CLASS/*.jpg), or a built-in set: digits.")
@click.option("--weights", help='Pretrained weights: a safetensors file, or "imagenet" for torchvision\'s own.')
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Default: the recipe's.")
@click.option("--allow-cpu", is_flag=True, help="Train on the CPU where the machine has no usable GPU.")
@click.option("--strict", is_flag=True, help="Refuse a data set with damaged images instead of leaving them out.")
@click.option("--machine", "name", help="The machine's name. Default: fast-ai.")
@options.machine_options
@options.dry_run_option
@click.option("--keep", "then", flag_value="keep", help="Leave the machine running afterwards.")
@click.option("--terminate", "then", flag_value="terminate", help="Delete the machine once the results are home.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def train(
    recipe: str,
    data: str | None,
    weights: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    allow_cpu: bool,
    strict: bool,
    then: str | None,
    dry_run: bool,
    yes: bool,
    **flags: object,
) -> None:
    """Train RECIPE (default: digits) on the machine, bring the results home, and stop the machine."""
    from gpuops import jobs, workflow

    settings = resolve(**flags)
    trainer_options = [word for override in overrides for word in ("--set", override)]
    trainer_options += ["--seed", str(seed)] if seed is not None else []
    trainer_options += ["--allow-cpu"] * allow_cpu + ["--strict"] * strict
    training = jobs.Training(
        recipe=jobs.recipe_file(recipe),
        data=_place(data) if data else "digits",
        weights=_place(weights) if weights else None,
        options=tuple(trainer_options),
    )
    afterwards = _AFTERWARDS[then or "stop"]

    def estimate(plan: Plan) -> str | None:
        return workflow.estimate(settings, training, plan)

    try:
        with screen.Progress() as progress:
            if dry_run:
                jobs.check(training)

                def show(planned: Plan) -> None:
                    plan.show_plan(planned, settings, progress, afterwards=afterwards, estimate=estimate)

                workflow.rehearse(settings, show=show, tell=progress.tell, for_training=True)
                screen.say(plan.REHEARSED)
                return
            confirm = plan.confirm_plan(settings, progress, yes=yes, afterwards=afterwards, estimate=estimate)
            finished = workflow.train(
                settings, training, then=then or "stop", confirm=confirm, tell=progress.tell, show=progress.show
            )
    except workflow.Detached as detached:
        _detached(detached.run)
    _report(settings, finished)


@click.command(short_help="Follow a run again, and bring it home.")
@click.argument("run_id", required=False, metavar="[RUN]")
def attach(run_id: str | None) -> None:
    """Follow a run (the newest by default) to its end and bring it home."""
    from gpuops import workflow

    settings = resolve()
    try:
        with screen.Progress() as progress:
            finished = workflow.attach(settings, run_id, tell=progress.tell, show=progress.show)
    except workflow.Detached as detached:
        _detached(detached.run)
    _report(settings, finished)


@click.command(short_help="Bring runs home from the machine.")
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("--machine", "name", help="The machine's name. Default: fast-ai.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask before starting a stopped machine.")
def pull(run_id: str | None, yes: bool, **flags: object) -> None:
    """Bring a run home, or all of the machine's; a stopped machine is started for it and stopped again."""
    from gpuops import workflow

    settings = resolve(**flags)
    with screen.Progress() as progress:
        confirm = plan.confirm_plan(settings, progress, yes=yes)
        brought = workflow.pull(settings, run_id, confirm=confirm, tell=progress.tell)
    store = workflow.run_store(settings)
    for run in brought:
        screen.say(f"{run.id} is home, every file verified: {store.path(run.id)}")
    if not brought:
        screen.say("Nothing to bring home: no ended run there that isn't home already.")


@click.command()
def runs() -> None:
    """List this computer's runs, home or not."""
    from gpuops import results, workflow

    store = workflow.run_store(resolve())
    rows = [("RUN", "RECIPE", "MACHINE", "STATE", "ACCURACY", "HOME")]
    for run in store.all():
        home = store.is_home(run.id)
        outcome = results.outcome(store.path(run.id))
        state = outcome.state if home else f"on {run.machine}"
        accuracy = "-" if outcome.accuracy is None else f"{outcome.accuracy:.4f}"
        rows.append((run.id, run.recipe, run.machine, state, accuracy, str(store.path(run.id)) if home else "no"))
    rows += [(path.name, "-", "-", "damaged", "-", str(path)) for path in store.damaged()]
    screen.say(screen.columns(rows) if len(rows) > 1 else "No runs yet: gpuops train")


def _place(word: str) -> Path | str:
    return word if word in _NAMED else Path(word).expanduser()


def _rate(run: Run) -> str:
    return cost.rate(run.price_usd_per_hour)


def _detached(run: Run) -> None:
    """Ctrl-C: the run goes on where it is."""
    screen.say(
        f"\nDetached: run {run.id} goes on, on {run.machine}, at {_rate(run)}.\n"
        f"The machine stops by itself {run.grace_minutes:g} minutes after the run's end, or at its deadline.\n"
        f"  gpuops attach {run.id}   follow it again, and bring it home\n"
        f"  gpuops pull {run.id}     only bring it home, once it has ended\n"
        f"  gpuops down {run.machine}   stop the machine now; its disk is kept",
        err=True,
    )
    sys.exit(_DETACHED_EXIT_CODE)


def _report(settings: Settings, finished: Finished) -> None:
    """The last screen; the command's exit code is the job's."""
    from gpuops import workflow

    run, outcome = finished.run, finished.outcome
    folder = workflow.run_store(settings).path(run.id)
    rows = [("run", f"{run.id} {outcome.state}" + (f" ({outcome.reason})" if outcome.reason else ""))]
    if outcome.accuracy is not None:
        rows.append(("accuracy", f"{outcome.accuracy:.4f}"))
    if outcome.seconds is not None:
        rows.append(("duration", f"{outcome.seconds:.1f} s of training"))
    if finished.cost_usd is not None:
        rows.append(("cost", f"{cost.usd(finished.cost_usd)} for its hours on the machine, at {_rate(run)}"))
    if (folder / "out" / "weights.safetensors").exists():
        rows.append(("weights", str(folder / "out" / "weights.safetensors")))
    rows.append(("results", f"{folder} (every file verified)"))
    if finished.still_bills:
        rows.append(("bills", finished.still_bills))
    if outcome.state != "succeeded":
        rows.append(("next", f"read its log: {folder / 'log.txt'}"))
    screen.rows(rows)
    # A run that was interrupted has no exit code of its own, and it has not succeeded.
    sys.exit(outcome.exit_code if outcome.exit_code is not None else RunError.exit_code)
