import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import models, weights
from trainer.errors import WeightsRefused

SHARED_WEIGHTS = Path(__file__).parents[2].parent / "shared" / "weights" / "mobilenet_v2-imagenet.safetensors"
HEADER_OF_2_60_BYTES = struct.pack("<Q", 2**60) + b"{}"
MORE_THAN_IS_THERE = json.dumps({"body.0.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
UNKNOWN_KIND = json.dumps({"body.0.weight": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}})


def with_header(header: str) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + b"\x00" * 4


def state(arch: str = "photo_net", class_count: int = 2, head: str = "linear") -> dict[str, Tensor]:
    return dict(models.build(arch, class_count, head).module.state_dict())


def saved(tensors: dict[str, Tensor], folder: Path) -> str:
    path = folder / "weights.safetensors"
    save_file(tensors, path)
    return str(path)


def test_weights_come_back_whole_head_included(tmp_path: Path) -> None:
    trained, fresh = models.build("resnet18", 2), models.build("resnet18", 2)
    weights.save_weights(trained.module.state_dict(), tmp_path / "weights.safetensors")
    loaded = weights.load_pretrained(fresh, str(tmp_path / "weights.safetensors"))
    assert (loaded.missing, loaded.ignored) == ((), ())
    assert all(
        torch.equal(tensor, fresh.module.state_dict()[key]) for key, tensor in trained.module.state_dict().items()
    )


def test_the_last_layer_of_other_classes_is_left_out_and_named(tmp_path: Path) -> None:
    network = models.build("resnet18", 5)
    loaded = weights.load_pretrained(network, saved(state("resnet18", 2, "concat_pool"), tmp_path))
    assert loaded.missing == ("head.6.weight", "head.6.bias")
    assert sorted(loaded.ignored) == ["head.6.bias", "head.6.weight"]


def test_a_body_alone_is_enough_and_the_whole_head_is_named(tmp_path: Path) -> None:
    body = {key: tensor for key, tensor in state().items() if not key.startswith("head.")}
    network = models.build("photo_net", 2)
    start = network.module.state_dict()["head.1.weight"].clone()
    loaded = weights.load_pretrained(network, saved(body, tmp_path))
    assert (loaded.loaded, loaded.missing, loaded.ignored) == (len(body), ("head.1.weight", "head.1.bias"), ())
    assert torch.equal(network.module.state_dict()["head.1.weight"], start)
    assert torch.equal(network.module.state_dict()["body.0.weight"], body["body.0.weight"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"body.0.weight": None}, "body.0.weight is missing"),
        ({"body.1.num_batches_tracked": None}, "body.1.num_batches_tracked is missing"),
        (
            {"body.0.weight": torch.zeros(1, 3, 3, 3)},
            r"body.0.weight has shape \(1, 3, 3, 3\) instead of \(16, 3, 3, 3\)",
        ),
        ({"body.0.weight": torch.tensor(1.0)}, r"body.0.weight has shape \(\) instead of \(16, 3, 3, 3\)"),
        ({"head.1.weight": torch.zeros(2, 64)}, r"head.1.weight has shape \(2, 64\) instead of \(2, 128\)"),
        ({"head.4.weight": torch.zeros(2, 128)}, "head.4.weight is not part of photo_net"),
        ({"fc.weight": torch.zeros(2, 128)}, "fc.weight is not part of photo_net"),
        ({"body.1.weight": torch.ones(16, dtype=torch.int32)}, "body.1.weight has numbers of kind int32 instead of"),
        ({"body.1.weight": torch.ones(16, dtype=torch.complex64)}, "body.1.weight has numbers of kind complex64"),
        ({"body.1.num_batches_tracked": torch.tensor(1.0)}, "has numbers of kind float32 instead of int64"),
        ({"body.1.running_var": torch.full((16,), torch.nan)}, "body.1.running_var holds a number that is not finite"),
        ({"body.1.bias": torch.full((16,), 1e300, dtype=torch.float64)}, "body.1.bias holds a number that is not fin"),
        ({"body.0.weight": None, "spare": torch.zeros(1)}, r"spare is not part of photo_net \(and 1 more\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key_and_change_nothing(
    tmp_path: Path, change: dict[str, Tensor | None], sentence: str
) -> None:
    network = models.build("photo_net", 2)
    before = {key: tensor.clone() for key, tensor in network.module.state_dict().items()}
    tensors = {key: tensor for key, tensor in (state() | change).items() if tensor is not None}
    with pytest.raises(WeightsRefused, match=sentence):
        weights.load_pretrained(network, saved(tensors, tmp_path))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.module.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_another_width_are_converted(tmp_path: Path, kind: torch.dtype) -> None:
    tensors = {key: tensor.to(kind) if tensor.is_floating_point() else tensor for key, tensor in state().items()}
    network = models.build("photo_net", 2)
    weights.load_pretrained(network, saved(tensors, tmp_path))
    weight = network.module.state_dict()["body.0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, tensors["body.0.weight"].float())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pth", b"\x80\x04cos\nsystem\n."),
        ("model.safetensors", b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."),
        ("model.safetensors", b""),
        ("model.safetensors", HEADER_OF_2_60_BYTES),
        ("model.safetensors", with_header(MORE_THAN_IS_THERE)),
        ("model.safetensors", with_header(UNKNOWN_KIND)),
        ("model.safetensors", with_header("[" * 10_000)),
    ],
)
def test_a_hostile_file_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(WeightsRefused):
        weights.load_pretrained(models.build("photo_net", 2), name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = Path(saved(state(), tmp_path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsRefused, match="cannot be read"):
        weights.load_pretrained(models.build("photo_net", 2), str(path))


@pytest.mark.parametrize("kind", ["folder", "link to itself", "pipe", "absent", "name that cannot be"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    source = f"{tmp_path}/\0.safetensors" if kind == "name that cannot be" else str(path)
    with pytest.raises(WeightsRefused, match="There is no weights file"):
        weights.load_pretrained(models.build("photo_net", 2), source)


def test_our_own_networks_have_no_download() -> None:
    with pytest.raises(WeightsRefused, match="no ImageNet weights for digits_net"):
        weights.load_pretrained(models.build("digits_net", 2), True)


def test_an_earlier_download_with_other_bytes_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(WeightsRefused, match=r"squeezenet1_1-b8a52dc0\.pth is not what torchvision published"):
        weights.load_pretrained(models.build("squeezenet1_1", 2), True)


@pytest.mark.skipif(not SHARED_WEIGHTS.exists(), reason=f"{SHARED_WEIGHTS} is not here")
def test_the_imagenet_body_loads_and_the_new_head_is_named() -> None:
    network = models.build("mobilenet_v2", 2)
    loaded = weights.load_pretrained(network, str(SHARED_WEIGHTS))
    assert (loaded.loaded, loaded.ignored) == (312, ())
    assert len(loaded.missing) == 14 and all(key.startswith("head.") for key in loaded.missing)
    stem = load_file(SHARED_WEIGHTS)["features.0.0.weight"]
    assert torch.equal(network.module.state_dict()["features.0.0.weight"], stem)


@pytest.mark.skipif(not SHARED_WEIGHTS.exists(), reason=f"{SHARED_WEIGHTS} is not here")
def test_folding_the_imagenet_body_changes_its_features_by_rounding_alone() -> None:
    network = models.build("mobilenet_v2", 2)
    weights.load_pretrained(network, str(SHARED_WEIGHTS))
    network.module.eval()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        features, folded = network.features(images), models.frozen_forward(network)(images)
    assert ((folded - features).norm() / features.norm()).item() < 1e-5
