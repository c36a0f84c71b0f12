"""Precomputed activations: what decides their place, when they are made again, and that they change nothing."""

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from tests.trainer.conftest import COLOURS, paint
from trainer import data, features, models, recipe
from trainer.data import pixels
from trainer.data.pixels import Pixels
from trainer.device import choose
from trainer.errors import Stopped
from trainer.fit import fit
from trainer.models import Network
from trainer.opening import Options
from trainer.pace import Pace
from trainer.recipe import IMAGENET_MEAN, IMAGENET_STD
from trainer.stage import Stage

Trainer = Callable[..., tuple[int, str, str]]
Events = Callable[[Path, str], list[dict[str, Any]]]
Place = Callable[..., Path]

HEAD = """
name = "head"
arch = "digits_net"
size_px = 16
batch_size = 8
lr = 0.05
precision = "fp32"

[[stages]]
name = "head"
freeze_to = -1
precompute = true
epochs = 2
"""


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A recipe of one stage that trains our small network's head on precomputed activations."""
    path = tmp_path / "head.toml"
    path.write_text(HEAD)
    return path


@pytest.fixture
def made(
    trainer: Trainer, events: Events, head: Path, photos: Path, tmp_path: Path
) -> Callable[..., list[dict[str, Any]]]:
    """Fits the recipe, with what is given, in a run directory of its own: its `activations` events."""
    numbers = iter(range(100))

    def run(*more: object) -> list[dict[str, Any]]:
        out = tmp_path / f"run-{next(numbers)}"
        code, _, complained = trainer("fit", head, "--data", photos, "--out", out, "--allow-cpu", *more)
        assert (code, complained) == (0, "")
        return events(out, "activations")

    return run


def shards(cache: Path) -> list[Path]:
    return sorted((cache / "activations").rglob("*.safetensors"))


def test_activations_of_both_parts_are_computed_once_and_reported(
    made: Callable[..., list[dict[str, Any]]], own_cache: Path
) -> None:
    first = made()
    assert [(event["part"], event["images"], event["stage"]) for event in first] == [
        ("train", 24, "head"),
        ("valid", 8, "head"),
    ]
    assert all(event["pace"] == "fp32, channels_last, BatchNorm folded" for event in first)
    assert all(0 <= event["error"] < 1e-5 for event in first)
    assert [load_file(file)["features"].shape for file in shards(own_cache)] in (
        [(24, 64), (8, 64)],
        [(8, 64), (24, 64)],
    )
    assert all(load_file(file)["features"].dtype == torch.float32 for file in shards(own_cache))


def test_nothing_is_computed_again_where_nothing_changed(
    made: Callable[..., list[dict[str, Any]]], own_cache: Path
) -> None:
    made()
    before = {file: file.stat().st_mtime_ns for file in shards(own_cache)}
    assert made() == []
    assert {file: file.stat().st_mtime_ns for file in shards(own_cache)} == before


def test_what_does_not_decide_the_activations_computes_nothing_again(
    made: Callable[..., list[dict[str, Any]]],
) -> None:
    made()
    assert made("--set", "lr=0.1", "epochs=1", "batch_size=4", "optimizer=adamw", "label_smoothing=0.1") == []


@pytest.mark.parametrize(
    "more",
    [
        ("--seed", 1),  # other random weights
        ("--set", "size_px=12"),
        ("--set", "precision=bf16"),
        ("--set", "arch=photo_net"),
        ("--set", "data.mean=[0.5,0.5,0.5]"),
        ("--set", "data.std=[0.3,0.3,0.3]"),
        # The images are decoded larger, then shrunk to the stage's size in a second step: other pixels.
        ("--set", "augmentation.zoom_max=1.5"),
    ],
    ids=lambda more: str(more[-1]),
)
def test_a_run_with_another_part_of_the_key_computes_anew(
    made: Callable[..., list[dict[str, Any]]], own_cache: Path, more: tuple[object, ...]
) -> None:
    made()
    before = {file: file.read_bytes() for file in shards(own_cache)}
    assert [event["part"] for event in made(*more)] == ["train", "valid"]
    assert all(file.read_bytes() == content for file, content in before.items())
    assert len(shards(own_cache)) == 4


def test_a_changed_image_computes_the_activations_of_its_part_anew(
    made: Callable[..., list[dict[str, Any]]], photos: Path
) -> None:
    made()
    image = photos / "valid" / "cats" / "cats.1.png"
    status = image.stat()
    paint(image, COLOURS["cats"], seed=77)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [event["part"] for event in made()] == ["valid"]


def test_other_weights_given_as_a_file_compute_anew(made: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    torch.manual_seed(3)
    (tmp_path / "w.safetensors").write_bytes(save(models.build("digits_net", 2).module.state_dict()))
    made()
    assert len(made("--weights", tmp_path / "w.safetensors")) == 2
    assert made("--weights", tmp_path / "w.safetensors") == []


@pytest.fixture
def place_of(photos: Path, tmp_path: Path) -> Place:
    """Where activations lie: the same network, images and stage, but for what is given."""
    samples = data.find(str(photos), recipe.load("first_model").data)
    found, _ = pixels.load(samples.valid, 2, False, 18, tmp_path / "c", 0, lambda: None)
    torch.manual_seed(0)
    stage = Stage(name="head", size_px=16, freeze_to=-1, precompute=True)
    given: dict[str, Any] = {
        "cache": tmp_path / "cache",
        "part": found,
        "decoded_px": 18,
        "network": models.build("resnet18", 2),
        "stage": stage,
        "pace": Pace(precision="fp32", channels_last=True, folded=True),
        "normalisation": (IMAGENET_MEAN, IMAGENET_STD),
    }
    return lambda **changed: features.folder(**given | changed)


def test_equal_parts_have_one_place_below_the_cache(place_of: Place, tmp_path: Path) -> None:
    assert place_of() == place_of()
    assert place_of().parent == tmp_path / "cache" / "activations"
    assert place_of(pace=Pace(channels_last=True, folded=True, images_per_s=9.0)) == place_of()
    assert place_of(stage=Stage(size_px=16, freeze_to=-1, precompute=True, lr=0.5, epochs=3)) == place_of()


@pytest.mark.parametrize(
    "changed",
    [
        {"stage": Stage(name="head", size_px=24, freeze_to=-1, precompute=True)},
        {"pace": Pace(precision="bf16", channels_last=True, folded=True)},
        {"pace": Pace(channels_last=False, folded=True)},
        {"pace": Pace(channels_last=True, folded=False)},
        {"normalisation": ((0.5, 0.456, 0.406), IMAGENET_STD)},
        {"normalisation": (IMAGENET_MEAN, (0.229, 0.224, 0.3))},
        {"decoded_px": 20},
    ],
    ids=["size", "precision", "channels_last", "folded", "mean", "std", "decoded size"],
)
def test_each_part_of_the_key_that_is_given_makes_another_place(place_of: Place, changed: dict[str, Any]) -> None:
    assert place_of(**changed) != place_of()


def test_other_weights_of_the_body_make_another_place_and_of_the_head_none(place_of: Place) -> None:
    def network(name: str) -> Network:
        torch.manual_seed(0)
        made = models.build("resnet18", 2)
        tensor = made.module.state_dict()[name]
        tensor.view(-1)[0] += 1
        return made

    assert place_of(network=network("layer4.1.conv2.weight")) != place_of()
    assert place_of(network=network("layer1.0.bn1.running_mean")) != place_of()  # no parameter, but it decides
    assert place_of(network=network("head.2.weight")) == place_of()


def test_another_network_or_cut_makes_another_place(place_of: Place) -> None:
    torch.manual_seed(0)
    assert place_of(network=models.build("resnet34", 2)) != place_of()
    torch.manual_seed(0)
    linear = models.build("resnet18", 2, head="linear")
    assert linear.feature_width == 512  # the average alone, not the largest values beside it
    assert place_of(network=linear) != place_of()


def test_two_heads_do_not_drive_each_others_activations_out(
    made: Callable[..., list[dict[str, Any]]], own_cache: Path
) -> None:
    narrow = ("--set", "arch=squeezenet1_1", "size_px=32", "epochs=1")
    made(*narrow, "head=concat_pool")
    before = shards(own_cache)
    made(*narrow, "head=linear")
    assert len(shards(own_cache)) == 2 * len(before)
    assert made(*narrow, "head=concat_pool") == []


def test_other_file_contents_or_another_order_make_another_place(place_of: Place, photos: Path, tmp_path: Path) -> None:
    samples = data.find(str(photos), recipe.load("first_model").data)

    def part(chosen: tuple[data.Sample, ...]) -> Pixels:
        return pixels.load(chosen, 2, False, 18, tmp_path / "c", 0, lambda: None)[0]

    assert place_of(part=part(samples.valid)) == place_of()
    assert place_of(part=part(samples.valid[::-1])) != place_of()
    assert place_of(part=part(samples.valid[:-1])) != place_of()
    paint(photos / "valid" / "dogs" / "dogs.0.png", COLOURS["dogs"], seed=5)
    assert place_of(part=part(data.find(str(photos), recipe.load("first_model").data).valid)) != place_of()


@pytest.mark.parametrize("part", ["crop", "decoder", "trainer", "torch", "torchvision"])
def test_another_rule_or_version_makes_another_place(place_of: Place, part: str) -> None:
    assert place_of(libraries=features.LIBRARIES | {part: "another"}) != place_of()


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


ITEMS = {"items": "24"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps(Hostile()),
        save({"features": torch.zeros(24, 65)}, ITEMS),
        save({"features": torch.zeros(23, 64)}, ITEMS),
        save({"features": torch.zeros(24 * 64)}, ITEMS),
        save({"features": torch.zeros(24, 64, dtype=torch.float16)}, ITEMS),
        save({"features": torch.zeros(24, 64, dtype=torch.int64)}, ITEMS),
        save({"other": torch.zeros(24, 64)}, ITEMS),
        save({"features": torch.zeros(24, 64)}, {"items": "23"}),
        save({"features": torch.zeros(24, 64)}),
    ],
    ids=["empty", "pickle", "wider", "shorter", "flat", "fp16", "int64", "name", "items", "no metadata"],
)
def test_a_damaged_or_hostile_shard_is_made_again(
    made: Callable[..., list[dict[str, Any]]],
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    monkeypatch.chdir(tmp_path)
    made()
    [file] = [file for file in shards(own_cache) if len(load_file(file)["features"]) == 24]
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    assert [(event["part"], event["images"]) for event in made()] == [("train", 24)]
    assert file.read_bytes() == whole
    assert not (tmp_path / "ran").exists()


def test_a_shard_cut_short_is_made_again(made: Callable[..., list[dict[str, Any]]], own_cache: Path) -> None:
    made()
    [file] = [file for file in shards(own_cache) if len(load_file(file)["features"]) == 8]
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:-4])
    assert [event["part"] for event in made()] == ["valid"]
    assert file.read_bytes() == whole


@pytest.fixture
def interrupted(head: Path, photos: Path, tmp_path: Path) -> Options:
    """Options to go on with the run in tmp_path/run, which was stopped while it computed the second part."""
    asked = iter(range(1000))

    def stop() -> None:
        # Twice for each of the images, then once per batch of activations: the second one is the validation part's.
        if next(asked) == 2 * 32 + 1:
            raise Stopped(signal.SIGINT)

    options = Options(
        source=str(photos),
        out=tmp_path / "run",
        device=choose(allow_cpu=True),
        workers=0,
        cache=tmp_path / "a",
        check_stop=stop,
    )
    with pytest.raises(Stopped):
        fit(recipe.load(str(head)), options)
    return replace(options, resume=True)


def test_an_interrupted_filling_goes_on_with_what_is_missing(
    head: Path, events: Events, interrupted: Options, tmp_path: Path
) -> None:
    [train] = shards(tmp_path / "a")
    assert [event["part"] for event in events(tmp_path / "run", "activations")] == ["train"]
    status = train.stat()
    fit(recipe.load(str(head)), interrupted)
    made = events(tmp_path / "run", "activations")
    assert (made[-1]["part"], made[-1]["images"]) == ("valid", 8)
    assert train.stat() == status
    assert len(shards(tmp_path / "a")) == 2


def test_an_interrupted_filling_has_a_checkpoint_as_every_step_has(
    head: Path, events: Events, interrupted: Options, tmp_path: Path
) -> None:
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
    fit(recipe.load(str(head)), interrupted)
    assert [event["part"] for event in events(tmp_path / "run", "activations")] == ["train", "valid"]
    assert len(events(tmp_path / "run", "resume")) == 1


def test_a_cache_that_is_gone_on_resuming_is_filled_again(
    head: Path, photos: Path, events: Events, tmp_path: Path
) -> None:
    whole, cut, cache = tmp_path / "whole", tmp_path / "cut", tmp_path / "a"
    asked = iter(range(1000))

    def stop() -> None:
        if next(asked) == 2 * 32 + 2 + 4:  # in the second epoch
            raise Stopped(signal.SIGINT)

    options = Options(source=str(photos), out=cut, device=choose(allow_cpu=True), workers=0, cache=cache)
    fit(recipe.load(str(head)), replace(options, out=whole, cache=tmp_path / "b"))
    with pytest.raises(Stopped):
        fit(recipe.load(str(head)), replace(options, check_stop=stop))
    shutil.rmtree(cache)
    fit(recipe.load(str(head)), replace(options, resume=True))
    assert [event["part"] for event in events(cut, "activations")] == ["train", "valid"] * 2
    weights = [(run / "out" / "weights.safetensors").read_bytes() for run in (whole, cut)]
    assert weights[0] == weights[1]


def test_in_fp32_training_on_activations_equals_training_the_frozen_network(
    trainer: Trainer, events: Events, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        arch = "mobilenet_v2"
        head = "concat_pool"
        size_px = 32
        batch_size = 8
        precision = "fp32"
        seed = 4

        [[stages]]
        name = "head"
        freeze_to = -1
        augment = false
        lr = 0.01
        epochs = 3
        """
    )
    curves = []
    for precompute in ("true", "false"):
        out = tmp_path / precompute
        more = ("--set", f"precompute={precompute}")
        code, _, complained = trainer("fit", path, "--data", photos, "--out", out, "--allow-cpu", *more)
        assert (code, complained) == (0, "")
        assert len(events(out, "activations")) == (2 if precompute == "true" else 0)
        curves.append([(epoch["train_loss"], epoch["valid_loss"]) for epoch in events(out, "epoch")])
    kept, shown = curves
    assert len(kept) == 3
    assert kept[0] != kept[1] != kept[2]
    for epoch in range(3):
        assert kept[epoch] == pytest.approx(shown[epoch], abs=1e-5, rel=0)


def test_reduced_precision_is_measured_against_plain_fp32(made: Callable[..., list[dict[str, Any]]]) -> None:
    exact, rounded = made(), made("--set", "precision=bf16")
    assert all(event["error"] < 1e-5 for event in exact)
    assert all(1e-4 < event["error"] < 0.1 for event in rounded)
    assert all(event["pace"].startswith("bf16") for event in rounded)
    json.dumps(rounded, allow_nan=False)
