import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from tests.trainer.conftest import COLOURS, paint

Trainer = Callable[..., tuple[int, str, str]]
Change = Callable[[dict[str, Any]], object]

LAST_DIGIT = 1.0001e-6  # both tables have six digits, and each was rounded by itself


@pytest.fixture
def labelled(photos: Path) -> Path:
    """The photographs with a label CSV: each has its class, and every second one a label beside it."""
    files = sorted(photos.rglob("*.png"))
    rows = [f"{file.relative_to(photos)},{file.parent.name}{' odd' * (n % 2)}" for n, file in enumerate(files)]
    (photos / "labels.csv").write_text("\n".join(["image,labels", *rows]))
    return photos


@pytest.fixture
def run_dir(trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path) -> Path:
    """A run of one epoch."""
    argv = ("fit", small_recipe, "--data", photos, "--out", tmp_path / "run", "--allow-cpu")
    assert trainer(*argv, "--set", "stages.0.epochs=1", "stages.1.epochs=1")[0] == 0
    return tmp_path / "run"


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def assert_equal(found: list[dict[str, str]], expected: list[dict[str, str]], below: Path) -> None:
    """The same images in the same order, with the same answers, all probabilities within the last digit."""
    assert [str(Path(row["image"]).relative_to(below)) for row in found] == [row["image"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row["predicted"] == wanted["predicted"]
        for name in set(row) - {"image", "predicted"}:
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=0, abs=LAST_DIGIT)


def change_model(run_dir: Path, change: Change) -> None:
    file = run_dir / "out" / "model.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("tta", [0, 2])
@pytest.mark.parametrize("snapshots", ["false", "true"])
@pytest.mark.parametrize("labels", ["single", "multi"])
def test_predict_repeats_the_runs_own_table_wherever_the_run_lies_and_without_its_recipe(
    trainer: Trainer, labelled: Path, small_recipe: Path, tmp_path: Path, labels: str, snapshots: str, tta: int
) -> None:
    several = labels == "multi"
    argv = ("fit", small_recipe, "--data", labelled, "--out", tmp_path / "run", "--allow-cpu")
    options = ("stages.0.epochs=1", f"stages.1.snapshots={snapshots}", f"tta={tta}")
    assert trainer(*argv, "--set", *options, *["data.labels_csv=labels.csv"] * several)[0] == 0
    small_recipe.unlink()
    moved = tmp_path / "elsewhere" / "kept"
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    expected = rows((moved / "out" / "predictions.csv").read_text())
    assert len(json.loads((moved / "out" / "model.json").read_text())["ensemble"]) == (2 if snapshots == "true" else 0)

    files = [labelled / row["image"] for row in expected]
    code, said, complained = trainer("predict", moved, *(files if several else [labelled / "valid"]))
    assert (code, complained) == (0, "")
    assert_equal(rows(said), expected, below=labelled)
    assert any(" odd" in row["class"] for row in expected) is several

    # A copy of out/ alone, files one by one and in threads: the same.
    shutil.copytree(moved / "out", tmp_path / "copied")
    assert_equal(rows(trainer("predict", tmp_path / "copied", *files, "--workers", 3)[1]), expected, below=labelled)


def test_the_number_of_views_can_be_chosen(trainer: Trainer, run_dir: Path, photos: Path) -> None:
    plain, more = (rows(trainer("predict", run_dir, photos / "valid", *said)[1]) for said in ((), ("--tta", 2)))
    assert [row["image"] for row in plain] == [row["image"] for row in more]
    assert [row["cats"] for row in plain] != [row["cats"] for row in more]


def test_files_that_cannot_be_decoded_are_named_and_the_others_have_their_rows(
    trainer: Trainer, run_dir: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "valid" / "cats" / "cats.1.png").write_bytes(b"no image")
    (photos / "valid" / "dogs" / "notes.txt").write_text("in a folder, what is no image is passed over")
    code, said, complained = trainer("predict", run_dir, photos / "valid", "--out", tmp_path / "table.csv")
    assert (code, said) == (22, "")
    first, last = complained.splitlines()
    assert first.startswith(f"{photos / 'valid' / 'cats' / 'cats.1.png'}: ")
    assert last == "error: 1 images cannot be decoded and have no row. Repair or remove the files above."
    table = rows((tmp_path / "table.csv").read_text())
    assert len(table) == 7
    assert not any("cats.1.png" in row["image"] for row in table)
    # A file that was named is not passed over.
    code, said, complained = trainer("predict", run_dir, photos / "valid" / "dogs" / "notes.txt")
    assert (code, rows(said)) == (22, [])
    assert "notes.txt: " in complained


def test_a_place_without_images_is_refused(trainer: Trainer, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said, complained = trainer("predict", run_dir, tmp_path / "empty")
    assert (code, said) == (21, "")
    assert "no image in what was given" in complained
    code, _, complained = trainer("predict", run_dir, tmp_path / "absent.png")
    assert code == 21
    assert f"There is no file {tmp_path / 'absent.png'}" in complained


def test_a_folder_that_is_no_run_is_refused(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    code, said, complained = trainer("predict", tmp_path, photos / "valid")
    assert (code, said) == (25, "")
    assert "model.json cannot be read: No such file" in complained


# Whoever unpickles this makes the file `ran`.
PICKLE = b"cposix\nsystem\n(S'touch ran'\ntR."
DEEP = b'{"classes": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b"{}", PICKLE, DEEP, b"\xff\xfe\x00", b'{"format": "1"}', b'{"format": 1}'],
    ids=lambda content: repr(content[:16]),
)
def test_a_hostile_model_json_is_refused_and_nothing_runs(
    trainer: Trainer,
    run_dir: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    monkeypatch.chdir(tmp_path)
    (run_dir / "out" / "model.json").write_bytes(content)
    code, said, complained = trainer("predict", run_dir, photos / "valid")
    assert (code, said) == (25, "")
    assert complained.startswith("error: ")
    assert complained.count("\n") == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "key", "value"),
    [
        (25, "format", 2),
        (25, "arch", ["digits_net"]),
        (20, "arch", "os.system"),
        (20, "arch", "timm/../../evil"),
        (25, "head", "no_head"),
        (25, "classes", "cats"),
        (25, "classes", []),
        (25, "classes", ["cats", 7]),
        (25, "classes", ["x"] * 100_001),
        (25, "classes", {"cats": 1, "dogs": 2}),
        (24, "classes", ["cats", "dogs", "owls"]),
        (25, "size_px", 10**9),
        (25, "size_px", -1),
        (25, "size_px", 16.5),
        (25, "size_px", True),
        (25, "size_px", "16"),
        (25, "decoded_px", 10**9),
        (25, "decoded_px", 10**400),
        (25, "tta", 10**9),
        (25, "seed", -1),
        (25, "seed", "0"),
        (25, "mean", [0.5]),
        (25, "mean", ["0.5", "0.5", "0.5"]),
        (25, "mean", [float("nan")] * 3),
        (25, "std", [0, 0, 0]),
        (25, "std", [float("inf")] * 3),
        (25, "multi_label", "yes"),
        (25, "multi_label", True),
        (25, "threshold", 0.5),
        (25, "augmentation", []),
        (25, "augmentation", {"zoom_max": 10**9}),
        (25, "augmentation", {"__class__": "os.system"}),
        (25, "ensemble", "weights.safetensors"),
        (25, "ensemble", [7]),
        (25, "ensemble", ["../stolen.safetensors"]),
        (25, "ensemble", ["/etc/passwd"]),
        (25, "ensemble", ["weights.safetensors"] * 1000),
        (24, "ensemble", [".."]),
        (24, "ensemble", [""]),
        (24, "ensemble", ["\0.safetensors"]),
        (24, "ensemble", ["model.json"]),
        (24, "ensemble", ["absent.safetensors"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_value_that_no_run_leaves_is_refused(
    trainer: Trainer, run_dir: Path, photos: Path, code: int, key: str, value: object
) -> None:
    shutil.copy(run_dir / "out" / "weights.safetensors", run_dir / "stolen.safetensors")
    change_model(run_dir, lambda values: values.update({key: value}))
    found, said, complained = trainer("predict", run_dir, photos / "valid")
    assert (found, said) == (code, "")
    assert complained.startswith("error: ")
    assert complained.count("\n") == 1


def test_a_model_json_that_is_a_pipe_or_a_device_is_refused(trainer: Trainer, run_dir: Path, photos: Path) -> None:
    file = run_dir / "out" / "model.json"
    file.unlink()
    os.mkfifo(file)
    assert trainer("predict", run_dir, photos / "valid")[0] == 25
    file.unlink()
    file.symlink_to("/dev/zero")
    assert trainer("predict", run_dir, photos / "valid")[0] == 25


@pytest.mark.parametrize(
    "content",
    [b"", PICKLE, b"\xff" * 64, (10**12).to_bytes(8, "little") + b"{}", (8).to_bytes(8, "little") + DEEP[:8]],
    ids=["empty", "pickle", "noise", "header of a terabyte", "cut header"],
)
def test_hostile_weights_are_refused_and_nothing_runs(
    trainer: Trainer, run_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (run_dir / "out" / "weights.safetensors").write_bytes(content)
    code, said, complained = trainer("predict", run_dir, photos / "valid")
    assert (code, said) == (24, "")
    assert "cannot be read" in complained
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("head.1.bias"),
        lambda weights: weights.update({"head.1.bias": torch.zeros(3)}),
        lambda weights: weights.update({"head.1.bias": torch.full((2,), float("nan"))}),
        lambda weights: weights.update({"more": torch.zeros(1)}),
        lambda weights: weights.update({"head.1.weight": torch.zeros(2, 64, dtype=torch.int64)}),
    ],
    ids=["missing", "of another shape", "not finite", "unexpected", "whole numbers"],
)
def test_weights_of_another_network_are_refused(trainer: Trainer, run_dir: Path, photos: Path, change: Change) -> None:
    file = run_dir / "out" / "weights.safetensors"
    weights = load_file(file)
    change(weights)
    file.write_bytes(save(weights))
    code, said, complained = trainer("predict", run_dir, photos / "valid")
    assert (code, said) == (24, "")
    assert complained.startswith("error: ")


# Imports what torch, torchvision and safetensors bring, the standard library and the trainer: as in an environment
# into which nothing else was ever installed.
FRESH = r"""
import re
import sys
from importlib.metadata import PackageNotFoundError, distributions, requires

def normal(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()

wanted, there = ["torch", "torchvision", "safetensors"], set()
while wanted:
    name = wanted.pop()
    if name in there:
        continue
    there.add(name)
    try:
        needs = requires(name) or []
    except PackageNotFoundError:  # for another system
        continue
    wanted += [normal(need) for need in needs if "extra ==" not in need]

def packages(distribution):
    return {file.parts[0].removesuffix(".py") for file in distribution.files or [] if file.suffix == ".py"}

mine, others = set(), set()
for distribution in distributions():
    known = normal(distribution.metadata["Name"]) in {*there, "gpuops"}
    (mine if known else others).update(packages(distribution))
others -= mine
assert {"sklearn", "torchmetrics", "matplotlib", "tomli", "onnx", "pytest"} <= others, sorted(others)
assert not {"numpy", "PIL", "torch", "torchvision", "safetensors"} & others

class Fresh:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in others | {"gpuops"} else self.finder.find_spec(name, *more)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Fresh(finder) for finder in sys.meta_path]
from trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_predict_needs_torch_torchvision_and_safetensors_alone(
    trainer: Trainer, run_dir: Path, photos: Path, tmp_path: Path
) -> None:
    paint(photos / "new" / "one.jpg", COLOURS["cats"], seed=7)
    argv = [sys.executable, "-c", FRESH, "predict", run_dir, photos / "new", "--tta", "1"]
    done = subprocess.run(argv, cwd=Path.cwd(), capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == trainer(*argv[3:])[1].splitlines()
