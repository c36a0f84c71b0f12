"""What a run says: lines of the log for a person, events in metrics.jsonl for a program, files in `out/` for later."""

import platform
from collections.abc import Sequence
from dataclasses import asdict

import torch
import torchvision

import trainer
from trainer.data import Samples
from trainer.data.pixels import Unreadable
from trainer.engine import Evaluated
from trainer.history import Epoch, best
from trainer.run import Run
from trainer.rundir import RunDir, write_atomically
from trainer.weights import Loaded, save_weights

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


def opened(run: Run, loaded: Loaded | None, epochs_done: int) -> None:
    """What is about to be trained, on what, and where."""
    recipe, module = run.recipe, run.network.module
    parameters = sum(parameter.numel() for parameter in module.parameters())
    say(f"data:    {len(run.train):,} training and {len(run.valid):,} validation images, {len(run.classes)} classes")
    say(f"network: {recipe.arch}, {parameters:,} parameters, {run.network.group_count} layer groups")
    if loaded:
        fresh = f"; new: {_listed(loaded.missing)}" if loaded.missing else ""
        say(f"weights: {loaded.loaded} tensors from {loaded.source}{fresh}")
    say(f"device:  {run.device.name}")
    say(f"recipe:  {recipe.name}, {recipe.total_epochs} epochs in {len(recipe.stages)} stages, seed {recipe.seed}")
    if epochs_done:
        say(f"resumed after {epochs_done} of {recipe.total_epochs} epochs")
    run.rundir.record(
        "resume" if epochs_done else "start",
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
        train_images=len(run.train),
        valid_images=len(run.valid),
        epochs_done=epochs_done,
    )


def epoch(rundir: RunDir, measured: Epoch) -> None:
    """One finished epoch."""
    say(measured.line())
    rundir.record("epoch", **asdict(measured))


def closed(run: Run, history: Sequence[Epoch], evaluated: Evaluated, seconds: float) -> None:
    """Write everything that comes home, the weights first and the summary last, and say where it is."""
    # matplotlib is only imported here: a run that was refused should not have waited a second for it.
    from trainer.plots import history_png

    recipe, out = run.recipe, run.rundir.out
    save_weights(run.network.module, out / "weights.safetensors")
    run.rundir.write_json("model.json", _model(run))
    run.rundir.write_csv(
        "predictions.csv", ("image", "class", "predicted", "probability"), _predictions(run, evaluated)
    )
    write_atomically(out / "history.png", history_png(recipe, history, run.head_rates))
    summary = _summary(run, history, evaluated, seconds)
    run.rundir.write_json("summary.json", summary)
    run.rundir.record("end", accuracy=evaluated.accuracy, valid_loss=evaluated.loss, seconds=seconds)
    right = round(evaluated.accuracy * len(run.valid))
    say(
        f"accuracy {evaluated.accuracy:.4f} ({right} of {len(run.valid)} validation images) after {seconds:.1f} s; "
        f"weights: {out / 'weights.safetensors'}"
    )


def _model(run: Run) -> dict[str, object]:
    """All that is needed beside the weights to classify an image."""
    data = run.recipe.data
    return {
        "format": FORMAT,
        "arch": run.recipe.arch,
        "classes": list(run.classes),
        "size_px": run.recipe.stages[-1].size_px,
        "resize": "shorter side to size_px, then the middle square",
        "mean": list(data.mean),
        "std": list(data.std),
        "versions": VERSIONS,
    }


def _predictions(run: Run, evaluated: Evaluated) -> list[tuple[str, str, str, str]]:
    probabilities, predicted = evaluated.probabilities.max(dim=1)
    rows = zip(run.valid.names, run.valid.labels, predicted.tolist(), probabilities.tolist(), strict=True)
    return [(name, run.classes[label], run.classes[answer], f"{sure:.6f}") for name, label, answer, sure in rows]


def _summary(run: Run, history: Sequence[Epoch], evaluated: Evaluated, seconds: float) -> dict[str, object]:
    top = best(history)
    return {
        "format": FORMAT,
        "recipe": run.recipe.name,
        "recipe_sha256": run.recipe.sha256,
        "arch": run.recipe.arch,
        "seed": run.recipe.seed,
        "device": run.device.name,
        "accuracy": evaluated.accuracy,
        "valid_loss": evaluated.loss,
        "train_loss": history[-1].train_loss,
        "epochs": len(history),
        "best_epoch": {"number": history.index(top) + 1, "accuracy": top.accuracy, "valid_loss": top.valid_loss},
        "seconds": seconds,
        "epoch_seconds": sum(measured.seconds for measured in history),  # those before a resume too
        "train_images": len(run.train),
        "valid_images": len(run.valid),
        "skipped": [image.name for image in run.unreadable],
        "versions": VERSIONS,
    }


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
