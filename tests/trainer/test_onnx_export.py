import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from tests.trainer.conftest import COLOURS, paint
from trainer import trained
from trainer.__main__ import main

Trainer = Callable[..., tuple[int, str, str]]

SNAPSHOTS = """
arch = "squeezenet1_1"
head = "concat_pool"
size_px = 32
batch_size = 8
lr = 0.01

[[stages]]
cycles = 2
snapshots = true
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with fast.ai's head, which predicts with two snapshots together."""
    root = tmp_path_factory.mktemp("exported")
    (root / "snapshots.toml").write_text(SNAPSHOTS)
    for part, name, seed in product(("train", "valid"), ("cats", "dogs"), range(8)):
        paint(root / "photos" / part / name / f"{seed}.png", COLOURS[name], seed)
    argv = ("fit", root / "snapshots.toml", "--data", root / "photos", "--out", root / "run", "--allow-cpu")
    assert main([str(word) for word in (*argv, "--cache", root / "cache")]) == 0
    return root / "run"


def labelled(photos: Path) -> None:
    """A label CSV for every image: its class, and a label that half of them have beside it."""
    files = sorted(photos.rglob("*.png"))
    rows = [f"{file.relative_to(photos)},{file.parent.name}{' odd' * (n % 2)}" for n, file in enumerate(files)]
    (photos / "labels.csv").write_text("\n".join(["image,labels", *rows]))


def answers(file: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [found] = session.run(["probabilities"], {"images": images.numpy()})
    return torch.from_numpy(found)


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exports") / "photos.onnx"
    assert main(["export", str(run_dir), str(file)]) == 0
    return file


def test_an_exported_ensemble_gives_the_probabilities_of_the_run_for_any_batch(run_dir: Path, exported: Path) -> None:
    ready = trained.load(run_dir, torch.device("cpu"))
    assert len(ready.description.ensemble) == 2
    for count in (1, 2, 7):
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        torch.testing.assert_close(answers(exported, images), ready.classify(images), rtol=0, atol=1e-5)


def test_a_multi_label_network_exports_a_probability_for_each_label(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    labelled(photos)
    run, file = tmp_path / "run", tmp_path / "labels.onnx"
    argv = ("fit", small_recipe, "--data", photos, "--out", run, "--allow-cpu", "--set", "data.labels_csv=labels.csv")
    assert trainer(*argv)[0] == 0
    assert trainer("export", run, file) == (0, f"written: {file}\n", "")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    expected = trained.load(run, torch.device("cpu")).classify(images)
    torch.testing.assert_close(answers(file, images), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected.sum(dim=1), torch.ones(3))
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert (metadata["multi_label"], json.loads(metadata["threshold"])) == ("true", 0.5)


def test_the_file_is_valid_says_how_to_use_it_and_holds_no_python_and_no_path(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["photos.onnx"]  # no data beside it
    onnx.checker.check_model(exported, full_check=True)
    model = onnx.load(exported)
    [shown], [given] = model.graph.input, model.graph.output
    assert (shown.name, shown.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [size.dim_value for size in shown.type.tensor_type.shape.dim][1:] == [3, 32, 32]
    assert shown.type.tensor_type.shape.dim[0].dim_param == given.type.tensor_type.shape.dim[0].dim_param != ""
    assert (given.name, given.type.tensor_type.shape.dim[1].dim_value) == ("probabilities", 2)

    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["cats", "dogs"]
    assert (metadata["size_px"], metadata["decoded_px"], metadata["channels"]) == ("32", "35", "RGB")
    assert metadata["resize"].startswith("shorter side to decoded_px, then to size_px")

    assert {node.domain for node in model.graph.node} == {""}  # ONNX's own operators: no code to bring along
    assert not model.functions
    for tensor in model.graph.initializer:  # any three bytes lie somewhere among a million numbers
        tensor.ClearField("raw_data")
    content = model.SerializeToString()
    for mark in (
        b"\x80\x04\x95",
        b"__reduce__",
        b"torch._utils",
        b"ctorch",
        b".py",
        str(Path.cwd()).encode(),
    ):
        assert mark not in content


def test_without_its_packages_the_export_says_what_to_install_and_all_else_works(run_dir: Path, tmp_path: Path) -> None:
    lacking = """
import sys
for name in ("onnx", "onnxscript", "onnxruntime"):
    sys.modules[name] = None  # an import of it fails
import trainer.fit, trainer.predict
from trainer.__main__ import main
sys.exit(main(["export", *sys.argv[1:]]))
"""
    argv = [sys.executable, "-c", lacking, run_dir, tmp_path / "x.onnx"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    said = "error: The export needs packages that are not here: onnx. pip install onnx onnxscript.\n"
    assert done.stderr == said
    assert not (tmp_path / "x.onnx").exists()
