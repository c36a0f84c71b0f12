"""How many labels an image has: what a run inferred is said, kept, and not given up by a set that looks otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import COLOURS, paint
from trainer import checkpoint

Trainer = Callable[..., tuple[int, str, str]]
Events = Callable[[Path, str], list[dict[str, Any]]]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder of sixteen images with one label each in a CSV."""
    root = tmp_path / "labelled"
    for index in range(16):
        name = ("cats", "dogs")[index % 2]
        paint(root / f"{index}.png", COLOURS[name], seed=index)
    write_labels(root, ["cats", "dogs"] * 8)
    return root


def write_labels(root: Path, labels: list[str]) -> None:
    rows = [f"{index}.png,{label}" for index, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join(["image,labels", *rows, ""]))


SINGLE = ["cats", "dogs"] * 8
SEVERAL = ["cats dogs", "dogs", *SINGLE[2:]]


def fit(run: Trainer, recipe: Path, root: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return run(
        *("fit", recipe, "--data", root, "--out", out, "--allow-cpu"),
        *("--set", "data.labels_csv=labels.csv", "data.valid_fraction=0.25", *more),
    )


@pytest.mark.parametrize(("labels", "kind"), [(SINGLE, "single"), (SEVERAL, "multi")])
def test_what_was_inferred_is_recorded_with_its_reason_and_kept(
    trainer: Trainer, events: Events, small_recipe: Path, labelled: Path, tmp_path: Path, labels: list[str], kind: str
) -> None:
    write_labels(labelled, labels)
    assert fit(trainer, small_recipe, labelled, tmp_path / "run")[0] == 0
    [start] = events(tmp_path / "run", "start")
    assert start["multi_label"] is (kind == "multi")
    assert start["labels_why"].startswith("inferred: ")
    kept = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.safetensors").values["identity"]
    assert kept["labels"] == kind
    assert json.loads((tmp_path / "run" / "out" / "model.json").read_text())["multi_label"] is (kind == "multi")


@pytest.mark.parametrize(("first", "later", "kind"), [(SINGLE, SEVERAL, "single"), (SEVERAL, SINGLE, "multi")])
def test_a_later_set_that_disagrees_is_refused_by_what_the_run_was(
    trainer: Trainer,
    small_recipe: Path,
    labelled: Path,
    tmp_path: Path,
    first: list[str],
    later: list[str],
    kind: str,
) -> None:
    out = tmp_path / "run"
    write_labels(labelled, first)
    assert fit(trainer, small_recipe, labelled, out)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "heartbeat"}
    write_labels(labelled, later)
    code, _, complained = fit(trainer, small_recipe, labelled, out, "--resume")
    assert code == 25
    assert f"holds a run with another kind of labels ({kind} labels)" in complained
    assert complained.count("\n") == 1
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "heartbeat"}
    assert after == before


def test_the_same_labels_go_on(trainer: Trainer, small_recipe: Path, labelled: Path, tmp_path: Path) -> None:
    for more in ((), ("--resume",)):
        assert fit(trainer, small_recipe, labelled, tmp_path / "run", *more)[0] == 0
