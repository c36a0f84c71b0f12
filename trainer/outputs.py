"""What comes home in `out/`: weights, all that is needed to use them, predictions, a picture, and the final scores."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from trainer import snapshots
from trainer.answers import answer, words
from trainer.history import best
from trainer.predictions import Predicted
from trainer.report import FORMAT, VERSIONS, say
from trainer.run import Run
from trainer.rundir import write_atomically
from trainer.schedules import group_rates
from trainer.state import State
from trainer.weights import save_weights

WEIGHTS = "weights.safetensors"


def closed(run: Run, state: State, predicted: Mapping[str, Predicted], seconds: float) -> None:
    """Write everything that comes home, the weights first and the summary last, and say where it is."""
    # matplotlib is only imported here: a run that was refused should not have waited a second for it.
    from trainer.plots import history_png

    recipe, out, history = run.recipe, run.rundir.out, state.history
    save_weights(run.network.module.state_dict(), out / WEIGHTS)
    snapshots.copy(run.rundir, state.snapshots, out)
    run.rundir.write_json("model.json", _model(run, state, predicted["valid"].threshold))
    header = ("image", "class", "predicted", "probability", *run.classes)
    for part, found in predicted.items():
        run.rundir.write_csv(
            "predictions.csv" if part == "valid" else f"predictions-{part}.csv", header, _rows(run, found)
        )
    write_atomically(out / "history.png", history_png(recipe, history, _head_rates(run, state)))
    summary = _summary(run, state, predicted, seconds)
    run.rundir.write_json("summary.json", summary)
    run.rundir.record(
        "end", **{key: summary[key] for key in ("accuracy", "scored_on", "selected_by", "scores", "seconds")}
    )
    for line in _closing(run, state, predicted):
        say(line)
    say(f"after {seconds:.1f} s; weights: {out / WEIGHTS}")


def _closing(run: Run, state: State, predicted: Mapping[str, Predicted]) -> Iterator[str]:
    for part, found in predicted.items():
        selected = " – selected on this set" if state.selected_by and part == "valid" else ""
        for way, scores in found.scores.items():
            right = round(scores["accuracy"] * len(found.targets))
            listed = "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
            yield f"{part} {way}: {listed} ({right} of {len(found.targets)}){selected}"
    for choice in state.selected_by:
        yield f"selected on the validation part: {choice}"


def _model(run: Run, state: State, threshold: float) -> dict[str, object]:
    """All that is needed beside the weights to classify an image as the run did: `predict.py` reads it."""
    data = run.recipe.data
    return {
        "format": FORMAT,
        "arch": run.recipe.arch,
        "head": run.recipe.head,
        "classes": list(run.classes),
        "multi_label": run.multi_label,
        "threshold": threshold if run.multi_label else None,
        "size_px": run.recipe.stages[-1].size_px,
        "decoded_px": run.decoded_px,
        "resize": "shorter side to decoded_px, then to size_px, then the middle square",
        "mean": list(data.mean),
        "std": list(data.std),
        "tta": run.recipe.tta,
        "seed": run.recipe.seed,
        "augmentation": asdict(run.recipe.augmentation),
        "ensemble": list(state.snapshots),
        "versions": VERSIONS,
    }


def _rows(run: Run, found: Predicted) -> list[tuple[object, ...]]:
    """By the recipe's last way: each image's name, labels, predicted labels, the likeliest's probability, and all."""
    part = run.parts[found.part]
    probabilities = list(found.ways.values())[-1]
    threshold = found.threshold if run.multi_label else None
    return [
        (name, words(run.classes, labels), *answer(run.classes, row, threshold))
        for name, labels, row in zip(part.names, part.labels, probabilities, strict=True)
    ]


def _head_rates(run: Run, state: State) -> list[float]:
    """The head's highest learning rate in each stage."""
    count = run.network.group_count
    return [
        group_rates(run.rates_of(index, state), stage.spread, count)[-1]
        for index, stage in enumerate(run.recipe.stages)
    ]


def _summary(run: Run, state: State, predicted: Mapping[str, Predicted], seconds: float) -> dict[str, object]:
    history = state.history
    top = best(history)
    scored_on = "test" if "test" in predicted else "valid"
    final = predicted[scored_on]
    way = list(final.ways)[-1]
    return {
        "format": FORMAT,
        "recipe": run.recipe.name,
        "recipe_sha256": run.recipe.sha256,
        "arch": run.recipe.arch,
        "seed": run.recipe.seed,
        "device": run.device.name,
        # The final score: of the test part where there is one, by the recipe's last way of predicting.
        "accuracy": final.scores[way]["accuracy"],
        "scored_on": scored_on,
        "way": way,
        "selected_by": list(state.selected_by),
        "selected_on_this_set": bool(state.selected_by) and scored_on == "valid",
        "scores": {part: found.scores for part, found in predicted.items()},
        "threshold": final.threshold if run.multi_label else None,
        "valid_loss": predicted["valid"].loss,
        "train_loss": history[-1].train_loss,
        "epochs": len(history),
        "best_epoch": {"number": history.index(top) + 1, "accuracy": top.accuracy, "valid_loss": top.valid_loss},
        "rates_found": {run.recipe.stages[index].name: rate for index, rate in state.rates.items()},
        "seconds": seconds,
        "epoch_seconds": sum(measured.seconds for measured in history),  # those before a resume too
        "train_images": len(run.train),
        "valid_images": len(run.valid),
        "test_images": len(run.test) if run.test is not None else 0,
        "skipped": [image.name for image in run.unreadable],
        "versions": VERSIONS,
    }
