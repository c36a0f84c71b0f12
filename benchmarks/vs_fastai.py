"""How soon our trainer reaches an accuracy, and at which it ends, beside fastai on the same photographs and cores.

    python benchmarks/vs_fastai.py --fastai-python PYTHON [--seeds 3] [--folder DIR] [--quick]

PYTHON is an interpreter that has fastai 2.8 and safetensors; without it fastai's lines are skipped. Every run is a
process of its own with empty caches; the lines take turns, seed by seed, so that whatever else the computer is doing
meets all of them. Seconds count from the start of the process, imports included. A run that DIR holds already is not
run again. `--quick` shows that the script works, on a few photographs at 64 px: its numbers mean nothing.

Prints tables, and writes vs_fastai.json beside this script, with hardware and versions.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from computer import hardware
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table
from sklearn.model_selection import train_test_split

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parent
_SHARED = _CHECKOUT.parent / "shared"
_PEER = _HERE / "fastai_peer.py"

_FASTAI, _TUNED, _BEST, _HEAD, _TESTED = "fastai", "fastai-tuned", "best_classifier", "head", "best_classifier-tested"
_LINES = {
    _FASTAI: "fine_tune(2) as it comes, then its TTA of four views",
    _TUNED: "the same with its ChannelsLast, and bf16 by a callback of ours: its own to_bf16 asks for CUDA's autocast, "
    "which does nothing on a CPU",
    _BEST: "the shipped recipe; its last stage keeps the cycle that does best on the images that are reported",
    _HEAD: "first_model with one cycle of five epochs, and TTA of four views; nothing is selected",
    _TESTED: "the shipped recipe, its cycle chosen on a tenth of the training images, from which it does not learn; "
    "reported are the same images as of the other lines, which it never saw",
}
_RECIPES = {
    _BEST: ("best_classifier",),
    _HEAD: ("first_model", "cycles=1", "epochs=5", "tta=4"),
    _TESTED: ("best_classifier",),
}
_LEVELS = (0.955, 0.960, 0.965)
_WAYS = ("plain", "tta")
_RESAMPLES = 10_000
_TARGET_S = "wanted are 1/6 to .965, 1/2 beside tuned, and best_classifier's 1 in all"
_TARGET_ACCURACY = "wanted are intervals above −.010"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all runs share."""

    data: Path  # train/ and valid/
    tested: Path  # the same: nine tenths of train/ as train/, one as valid/, and valid/ as test/
    weights: Path
    folder: Path  # of all runs
    fastai_python: Path | None
    size_px: int
    batch_size: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the trainer with fastai: seconds to an accuracy, accuracies.")
    parser.add_argument("--fastai-python", type=Path, metavar="PYTHON", help="an interpreter that has fastai 2.8")
    parser.add_argument("--data", type=Path, default=_SHARED / "data" / "dogscats", metavar="DIR")
    weights = _SHARED / "weights" / "mobilenet_v2-imagenet.safetensors"
    parser.add_argument("--weights", type=Path, default=weights, metavar="FILE", help="of MobileNetV2's body")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps every run; default: a temporary folder")
    parser.add_argument(
        "--quick", action="store_true", help="few photographs at 64 px; no file is left beside this one"
    )
    options = parser.parse_args()

    lines = [line for line in _LINES if options.fastai_python or line not in (_FASTAI, _TUNED)]
    if not options.fastai_python:
        print("fastai's lines are skipped: --fastai-python was not given.")
    with tempfile.TemporaryDirectory(prefix="vs-fastai.") as name:
        temporary = Path(name)
        data = _few(options.data, temporary / "few") if options.quick else options.data.resolve()
        setting = Setting(
            data=data,
            tested=_with_test_part(data, temporary / "tested"),
            weights=options.weights.resolve(),
            folder=(options.folder or temporary).resolve() / ("quick" if options.quick else "full"),
            # Made absolute, not resolved: an environment's interpreter knows its libraries by where its link lies.
            fastai_python=options.fastai_python and options.fastai_python.absolute(),
            size_px=64 if options.quick else 224,
            batch_size=8 if options.quick else 32,
        )
        _warm_up(setting)
        runs = [_kept(setting, line, seed) for seed in range(options.seeds) for line in lines]
        report = _report(setting, {line: [run for run in runs if run["line"] == line] for line in lines})
    _show(report)
    if not options.quick:
        (_HERE / "vs_fastai.json").write_text(json.dumps(report, indent=1) + "\n")


def _few(data: Path, to: Path) -> Path:
    """Links to some photographs of each class."""
    for part, count in (("train", 20), ("valid", 8)):
        _link(
            [file for folder in sorted((data / part).iterdir()) for file in sorted(folder.iterdir())[:count]], to / part
        )
    return to


def _with_test_part(data: Path, to: Path) -> Path:
    """Links to the photographs, those of valid/ in test/, and a stratified tenth of those of train/ in valid/."""
    files = sorted((data / "train").glob("*/*"))
    classes = [file.parent.name for file in files]
    train, valid = train_test_split(files, test_size=0.1, stratify=classes, random_state=0)
    for part, chosen in {"train": train, "valid": valid, "test": (data / "valid").glob("*/*")}.items():
        _link(chosen, to / part)
    return to


def _link(files: Iterable[Path], part: Path) -> None:
    for file in files:
        link = part / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def _warm_up(setting: Setting) -> None:
    """Read the photographs and load both libraries once: else the first run alone would wait for the disk."""
    for file in setting.data.glob("*/*/*"):
        file.read_bytes()
    setting.folder.mkdir(parents=True, exist_ok=True)
    log = setting.folder / "warm-up.log"
    _run([sys.executable, "-c", "import trainer.fit, trainer.plots"], log)
    if setting.fastai_python:
        _run([setting.fastai_python, _PEER, "--help"], log)


def _kept(setting: Setting, line: str, seed: int) -> dict[str, Any]:
    """The run's result, from its folder if it lies there already."""
    folder = setting.folder / f"{line}-{seed}"
    kept = folder / "result.json"
    if kept.exists():
        result: dict[str, Any] = json.loads(kept.read_text())
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        load = round(os.getloadavg()[0], 1)
        run = _ours if line in _RECIPES else _fastai
        result = {"line": line, "seed": seed, "load_before": load, **run(setting, line, seed, folder)}
        kept.write_text(json.dumps(result))
    last = result["evaluations"][-1]
    print(f"seed {seed}  {line:<23} accuracy {last['accuracy']:.4f} with TTA, after {last['s']:.0f} s", flush=True)
    return result


def _fastai(setting: Setting, line: str, seed: int, folder: Path) -> dict[str, Any]:
    out = folder / "out.json"
    argv = [setting.fastai_python, _PEER, setting.data, setting.weights, out, "--seed", seed]
    argv += ["--size-px", setting.size_px, "--batch-size", setting.batch_size, *["--tuned"] * (line == _TUNED)]
    began = _run(argv, folder / "log")
    found = json.loads(out.read_text())
    return {
        "evaluations": [_evaluation(began, event.pop("time"), **event) for event in found.pop("evaluations")],
        **_answers(found.pop("predicted")),
        **found,
    }


def _ours(setting: Setting, line: str, seed: int, folder: Path) -> dict[str, Any]:
    data, part = (setting.tested, "test") if line == _TESTED else (setting.data, "valid")
    run, cache, plain = folder / "run", folder / "cache", folder / "plain.csv"
    trainer = [sys.executable, "-m", "trainer"]
    recipe, *overrides = _RECIPES[line]
    argv = [*trainer, "fit", recipe, "--data", data, "--out", run, "--cache", cache, "--weights", setting.weights]
    argv += ["--seed", seed, "--allow-cpu", "--set", "arch=mobilenet_v2", f"size_px={setting.size_px}"]
    argv += [f"batch_size={setting.batch_size}", *overrides]
    began = _run(argv, folder / "log")
    shutil.rmtree(cache)
    # The run's own table has the probabilities of its last way alone, which is with TTA.
    _run([*trainer, "predict", run, data / part, "--tta", 0, "--out", plain], folder / "predict.log")

    events: dict[str, list[dict[str, Any]]] = {}
    for event in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        events.setdefault(event.pop("event"), []).append(event)
    [start], [end] = events["start"], events["end"]
    epochs = [_evaluation(began, _moment(e["time"]), e["stage"], e["accuracy"]) for e in events["epoch"]]
    tta = run / "out" / ("predictions.csv" if part == "valid" else f"predictions-{part}.csv")
    return {
        "evaluations": [
            *epochs,
            _evaluation(began, _moment(end["time"]), "tta", end["scores"][part]["tta"]["accuracy"]),
        ],
        **_answers({"plain": _predicted(plain), "tta": _predicted(tta)}),
        "finder": [
            {key: event[key] for key in ("stage", "rule", "lr", "suggestions")} for event in events.get("finder", ())
        ],
        "cycles": [
            {key: event[key] for key in ("number", "train_loss", "valid_loss", "decision")}
            for event in events.get("cycle", ())
        ],
        "selected_by": end["selected_by"],
        "pace": {event["stage"]: event["chosen"] for event in events["pace"]},
        "threads": start["threads"],
        "loader_threads": start["workers"],
        "versions": start["versions"],
    }


def _run(argv: Sequence[object], log: Path) -> float:
    """When the process was started, after it has ended well."""
    began = time.time()
    with log.open("w") as file:
        code = subprocess.run(
            [str(word) for word in argv],
            cwd=_CHECKOUT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if code:
        raise SystemExit(f"{' '.join(map(str, argv))} ended with {code}:\n{log.read_text()[-2000:]}")
    return began


def _evaluation(began: float, moment: float, stage: str, accuracy: float) -> dict[str, Any]:
    return {"s": round(moment - began, 1), "stage": stage, "accuracy": round(accuracy, 5)}


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _predicted(table: Path) -> dict[str, str]:
    """Predicted class by "class/name" of the image."""
    with table.open(newline="") as file:
        return {"/".join(Path(row["image"]).parts[-2:]): row["predicted"] for row in csv.DictReader(file)}


def _answers(predicted: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The images, sorted, and for each way of predicting a digit per image: 1 where it is right."""
    images = sorted(predicted["plain"])
    right = {way: "".join(str(int(predicted[way][image] == image.split("/")[0])) for image in images) for way in _WAYS}
    return {"images": images, "right": right}


def _report(setting: Setting, runs: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    if len({tuple(run["images"]) for every in runs.values() for run in every}) != 1:
        raise SystemExit("The runs were not scored on the same images")
    summaries = {line: _summary(line, every) for line, every in runs.items()}
    peers = [line for line in (_FASTAI, _TUNED) if line in runs]
    return {
        "what": "cats and dogs by MobileNetV2 from ImageNet weights; seconds from the start of the process, imports "
        "included and caches empty, one run after the other; the mean over seeds of the latest accuracy is a curve, "
        "and reaches_s is when it first is at a level that it then keeps, null where it never does",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {line: every[0]["versions"] for line, every in runs.items() if line in (_FASTAI, _HEAD)},
        "seeds": len(runs[_HEAD]),
        "images": {part: len(list((setting.data / part).glob("*/*"))) for part in ("train", "valid")},
        "size_px": setting.size_px,
        "batch_size": setting.batch_size,
        "lines": summaries,
        "ours_to_fastai_s": {
            f"{ours} / {peer}": _ratios(summaries[ours], summaries[peer]) for ours in (_BEST, _HEAD) for peer in peers
        },
        "differences": {
            "what": "ours − fastai's accuracy on the same images, averaged over seeds; the 95 % interval is a "
            f"bootstrap's over images ({_RESAMPLES:,} resamples, percentiles), the trained networks held fixed",
            "found": [
                {"ours": ours, "fastai": peer, "way": way, **_difference(runs[ours], runs[peer], way)}
                for ours in _RECIPES
                for peer in peers
                for way in _WAYS
            ],
        },
        "right": "of the images in the order of class/name, 1 where the predicted class is right",
        "runs": [{key: run[key] for key in run if key != "images"} for every in runs.values() for run in every],
    }


def _summary(line: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    whole_s = [run["evaluations"][-1]["s"] for run in runs]
    by_seed = {way: [_accuracy(run, way) for run in runs] for way in _WAYS}
    # The epochs of _TESTED are evaluated on other images than those of the rest, and the moments say nothing.
    comparable = [run["evaluations"][-1:] if line == _TESTED else run["evaluations"] for run in runs]
    curve = _mean_curve(comparable)
    stages = list(dict.fromkeys(evaluation["stage"] for evaluation in comparable[0]))
    return {
        "what": _LINES[line],
        "reaches_s": {f"{level:.3f}": _reached_s(curve, level) for level in _LEVELS if line != _TESTED},
        "whole_s": round(mean(whole_s), 1),
        "whole_s_by_seed": whole_s,
        "accuracy": {way: round(mean(found), 5) for way, found in by_seed.items()},
        "accuracy_by_seed": by_seed,
        "accuracy_after_stage": {stage: round(mean(_after(run, stage) for run in comparable), 5) for stage in stages},
        "computed_in": sorted({words for run in runs for words in _computed_in(run)}),
        "rates_found": [{event["stage"]: event["lr"] for event in run.get("finder", ())} for run in runs],
    }


def _accuracy(run: Mapping[str, Any], way: str) -> float:
    right: str = run["right"][way]
    return round(right.count("1") / len(right), 5)


def _after(evaluations: Sequence[Mapping[str, Any]], stage: str) -> float:
    accuracies: list[float] = [evaluation["accuracy"] for evaluation in evaluations if evaluation["stage"] == stage]
    return accuracies[-1]


def _computed_in(run: Mapping[str, Any]) -> list[str]:
    """Number format and memory layout: as they were seen in fastai's batches, as our stages chose them."""
    if "batches_computed_in" in run:
        return list(run["batches_computed_in"])
    return [
        f"{stage}: {pace['precision']}, {'channels_last' if pace['channels_last'] else 'channels first'}"
        + ", BatchNorm folded" * pace["folded"]
        for stage, pace in run["pace"].items()
    ]


def _mean_curve(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[float, float]]:
    """Each moment (s) of an evaluation from which on all seeds have one, and the mean of their latest accuracies."""
    begins = max(run[0]["s"] for run in runs)
    moments = sorted({evaluation["s"] for run in runs for evaluation in run if evaluation["s"] >= begins})
    latest = [[[e["accuracy"] for e in run if e["s"] <= moment][-1] for run in runs] for moment in moments]
    return [(moment, mean(accuracies)) for moment, accuracies in zip(moments, latest, strict=True)]


def _reached_s(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """The first moment from which on the curve is never below the level."""
    reached = None
    for moment, accuracy in reversed(curve):
        if accuracy < level - 1e-9:  # a mean of equal numbers may be a rounding below them
            break
        reached = moment
    return reached


def _ratios(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, float | None]:
    """Our seconds divided by fastai's: to each level, and of the whole run; None where either never gets there."""
    pairs = {level: (ours["reaches_s"][level], peer["reaches_s"][level]) for level in ours["reaches_s"]}
    pairs["whole"] = (ours["whole_s"], peer["whole_s"])
    return {name: round(a / b, 3) if a is not None and b is not None else None for name, (a, b) in pairs.items()}


def _difference(ours: Sequence[dict[str, Any]], peer: Sequence[dict[str, Any]], way: str) -> dict[str, float]:
    per_image = _share_right(ours, way) - _share_right(peer, way)
    chosen = np.random.default_rng(0).integers(len(per_image), size=(_RESAMPLES, len(per_image)))
    low, high = np.percentile(per_image[chosen].mean(axis=1), (2.5, 97.5))
    return {"mean": round(float(per_image.mean()), 5), "low": round(float(low), 5), "high": round(float(high), 5)}


def _share_right(runs: Sequence[dict[str, Any]], way: str) -> NDArray[np.float64]:
    """Of each image, the share of the seeds that are right about it."""
    right = np.array([[digit == "1" for digit in run["right"][way]] for run in runs], dtype=np.float64)
    share: NDArray[np.float64] = right.mean(axis=0)
    return share


def _show(report: Mapping[str, Any]) -> None:
    console = Console()
    levels = [f"{level:.3f}" for level in _LEVELS]
    timed = _table("seconds to an accuracy, and final accuracy", "line", *levels, "in all", "plain", "TTA")
    stages = _table("accuracy after each stage, and the rates that the finder chose, by seed", "line", "after", "rates")
    formats = _table("", "line", "computed in")
    for name, line in report["lines"].items():
        reaches = [_cell(line["reaches_s"].get(level), "{:.0f}") for level in levels]
        timed.add_row(
            name, *reaches, f"{line['whole_s']:.0f}", *(f"{accuracy:.4f}" for accuracy in line["accuracy"].values())
        )
        after = [f"{stage} {accuracy:.4f}" for stage, accuracy in line["accuracy_after_stage"].items()]
        rates = ["  ".join(f"{stage} {rate:.1e}" for stage, rate in found.items()) for found in line["rates_found"]]
        stages.add_row(name, "\n".join(after), "\n".join(rates).strip())
        formats.add_row(name, "\n".join(line["computed_in"]))
    ratios = _table(f"seconds, ours / fastai's; {_TARGET_S}", "ours / fastai's", *levels, "in all")
    for name, ratio in report["ours_to_fastai_s"].items():
        ratios.add_row(name, *(_cell(ratio[level], "{:.3f}") for level in (*levels, "whole")))
    differences = _table(
        f"accuracy, ours − fastai's; {_TARGET_ACCURACY}", "ours − fastai's", "way", "mean", "95 % interval"
    )
    for found in report["differences"]["found"]:
        interval = f"{found['low']:+.4f} … {found['high']:+.4f}"
        differences.add_row(f"{found['ours']} − {found['fastai']}", found["way"], f"{found['mean']:+.4f}", interval)
    for table in (timed, ratios, differences, stages, formats):
        if table.row_count:
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    return Table(*(Column(name, no_wrap=True) for name in columns), title=title)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


if __name__ == "__main__":
    main()
