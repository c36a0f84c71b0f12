"""What a run says while it goes on: lines of the log for a person, events in metrics.jsonl for a program."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
import torchvision

import trainer
from trainer.data import Samples, inspect
from trainer.data.pixels import Pixels, Unreadable
from trainer.history import Cycle, Epoch, best_cycle, overfits
from trainer.pace import Pace
from trainer.run import Run
from trainer.rundir import RunDir, write_atomically
from trainer.stage import Stage
from trainer.weights import Loaded

FORMAT = 1
NAMES_SHOWN = 10  # of a long list, in the log; metrics.jsonl has them all

VERSIONS = {
    "trainer": trainer.__version__,
    "python": platform.python_version(),
    "torch": torch.__version__,
    "torchvision": torchvision.__version__,
}


def say(line: str) -> None:
    """One line of the log, at once: it is followed while it grows."""
    print(line, flush=True)


def found(rundir: RunDir, samples: Samples, lost: Sequence[Unreadable]) -> None:
    """Count and name what the data holds that cannot be used."""
    if samples.ignored:
        say(f"ignored: {len(samples.ignored)} files that are not images: {_listed(samples.ignored)}")
        rundir.record("ignored", files=list(samples.ignored))
    if lost:
        say(f"skipped: {len(lost)} images that cannot be decoded:")
        for image in lost[:NAMES_SHOWN]:
            say(f"  {image.name}: {image.reason}")
        if len(lost) > NAMES_SHOWN:
            say(f"  and {len(lost) - NAMES_SHOWN} more, all in {rundir.metrics}")
        rundir.record("skipped", images=[asdict(image) for image in lost])


def duplicates(rundir: RunDir, decoded: Mapping[str, Pixels]) -> None:
    """Warn of photographs that lie in two parts: what was trained on is then scored too."""
    for part in ("valid", "test"):
        pairs = inspect.across_the_split(decoded["train"], decoded[part]) if part in decoded else []
        if pairs:
            say(f"warning: {len(pairs)} images of the {part} part are also in the training part:")
            for pair in pairs[:NAMES_SHOWN]:
                same = "is" if pair.exact else "is nearly"
                say(f"  {pair.second} {same} {pair.first}{', with other labels' if pair.labels_differ else ''}")
            rundir.record("duplicates", part=part, pairs=[asdict(pair) for pair in pairs])


def opened(run: Run, loaded: Loaded | None, epochs_done: int, resumed: bool) -> None:
    """What is about to be trained, on what, and where."""
    recipe, module = run.recipe, run.network.module
    parameters = sum(parameter.numel() for parameter in module.parameters())
    test = f", {len(run.test):,} test" if run.test is not None else ""
    several = f"; several labels an image: {run.labels_why}" if run.multi_label else ""
    say(
        f"data:    {len(run.train):,} training, {len(run.valid):,} validation{test} images, "
        f"{len(run.classes)} classes{several}"
    )
    say(f"network: {recipe.arch}, {parameters:,} parameters, {run.network.group_count} layer groups")
    if loaded:
        fresh = f"; new: {_listed(loaded.missing)}" if loaded.missing else ""
        other = f"; not used: {_listed(loaded.ignored)}" if loaded.ignored else ""
        say(f"weights: {loaded.loaded} tensors from {loaded.source}{fresh}{other}")
    say(f"device:  {run.device.name}")
    say(f"recipe:  {recipe.name}, {recipe.total_epochs} epochs in {len(recipe.stages)} stages, seed {recipe.seed}")
    if resumed:
        say(f"resumed after {epochs_done} of {recipe.total_epochs} epochs")
    run.rundir.record(
        "resume" if resumed else "start",
        format=FORMAT,
        versions=VERSIONS,
        device=run.device.name,
        threads=torch.get_num_threads(),
        workers=run.workers,
        recipe=asdict(recipe),
        recipe_sha256=recipe.sha256,
        weights=asdict(loaded) if loaded else None,
        parameters=parameters,
        classes=list(run.classes),
        multi_label=run.multi_label,
        labels_why=run.labels_why,
        images={name: len(part) for name, part in {"train": run.train, **run.parts}.items()},
        metrics=[*recipe.metrics, *(name for name, _ in run.given_metrics)],
        epochs_done=epochs_done,
    )


def paced(rundir: RunDir, stage: Stage, chosen: Pace, measured: Sequence[Pace]) -> None:
    """How a stage is computed, and what decided it."""
    if measured:
        say("pace:    " + "; ".join(f"{pace}: {pace.images_per_s:.0f} img/s" for pace in measured))
    rundir.record("pace", stage=stage.name, chosen=asdict(chosen), measured=[asdict(pace) for pace in measured])


def activations(rundir: RunDir, stage: str, part: str, count: int, seconds: float, pace: str, error: float) -> None:
    """Activations that were computed, and how far they are from plain fp32's."""
    per_s = count / max(seconds, 1e-9)
    say(f"{stage:<10} activations of {count:,} images ({part}), {pace}: {per_s:.0f} img/s, {error:.2g} from plain fp32")
    rundir.record(
        "activations", stage=stage, part=part, images=count, seconds=seconds, images_per_s=per_s, pace=pace, error=error
    )


def finder(
    rundir: RunDir,
    stage_index: int,
    stage: Stage,
    rates: Sequence[float],
    losses: Sequence[float],
    suggestions: Mapping[str, float],
) -> None:
    """The finder's curve, its suggestions and the one that is taken, and why."""
    from trainer.plots import finder_png

    name = f"lr_finder-{stage_index}"
    rundir.write_csv(f"{name}.csv", ("lr", "loss"), zip(rates, losses, strict=True))
    title = f"Learning-rate finder of stage {stage.name!r}"
    write_atomically(rundir.out / f"{name}.png", finder_png(title, rates, losses, suggestions, stage.find))
    chosen = suggestions[stage.find]
    listed = ", ".join(f"{name} {rate:.1e}" for name, rate in suggestions.items())
    say(
        f"{stage.name:<10} learning rate {chosen:.1e}, the finder's {stage.find} after {len(losses)} batches ({listed})"
    )
    rundir.record(
        "finder", stage=stage.name, batches=len(losses), suggestions=dict(suggestions), rule=stage.find, lr=chosen
    )


def epoch(rundir: RunDir, measured: Epoch) -> None:
    """One finished epoch."""
    say(measured.line())
    rundir.record("epoch", **asdict(measured))


def cycle(rundir: RunDir, stage: Stage, cycles: Sequence[Cycle]) -> None:
    """One finished cycle of a stage that goes on until over-fitting, and what that means for it."""
    last, over = cycles[-1], overfits(cycles)
    decision = "over-fitting: it ends" if over else "the stage's last" if len(cycles) == stage.cycles else "it goes on"
    kept = best_cycle(cycles).number
    say(
        f"{stage.name:<10} cycle {last.number}: training {last.train_loss:.4f}, validation {last.valid_loss:.4f}: "
        f"{decision}; best cycle: {kept}"
    )
    rundir.record("cycle", stage=stage.name, **asdict(last), decision=decision, best=kept)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
