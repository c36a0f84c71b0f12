import csv
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from trainer import models, recipe
from trainer.decode import decode

Trainer = Callable[..., tuple[int, str, str]]
Events = Callable[[Path, str], list[dict[str, Any]]]


def fit(run: Trainer, photos: Path, small_recipe: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return run("fit", small_recipe, "--data", photos, "--out", out, "--allow-cpu", *more)


def weights_of(out: Path) -> bytes:
    return (out / "out" / "weights.safetensors").read_bytes()


def test_a_run_leaves_the_files_of_the_contract(
    trainer: Trainer, events: Events, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, said, complained = fit(trainer, photos, small_recipe, out)
    assert (code, complained) == (0, "")
    assert {path.name for path in out.iterdir()} == {"metrics.jsonl", "heartbeat", "checkpoints", "out"}
    assert {path.name for path in (out / "out").iterdir()} == {
        "weights.safetensors",
        "model.json",
        "summary.json",
        "history.png",
        "predictions.csv",
    }
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["last.safetensors"]

    model = json.loads((out / "out" / "model.json").read_text())
    assert (model["format"], model["arch"], model["classes"], model["size_px"]) == (
        1,
        "digits_net",
        ["cats", "dogs"],
        16,
    )
    assert model["mean"] == list(recipe.IMAGENET_MEAN)
    summary = json.loads((out / "out" / "summary.json").read_text())
    assert (summary["format"], summary["epochs"], summary["train_images"], summary["valid_images"]) == (1, 4, 24, 8)
    assert summary["accuracy"] == 1.0  # blue dogs, orange cats
    assert load_file(out / "out" / "weights.safetensors")["head.1.weight"].shape == (2, 64)
    assert decode(out / "out" / "history.png").shape == (3, 780, 1080)
    rows = list(csv.DictReader((out / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["image"] for row in rows][:2] == ["valid/cats/cats.0.png", "valid/cats/cats.1.png"]
    assert all(row["class"] == row["predicted"] and float(row["probability"]) > 0.5 for row in rows)

    assert "data:    24 training, 8 validation images, 2 classes" in said
    assert "training on the CPU" in said
    assert "valid plain: accuracy 1.0000 (8 of 8)" in said
    assert str(out / "out" / "weights.safetensors") in said.splitlines()[-1]
    assert len(events(out, "start")) == len(events(out, "end")) == 1
    epochs = events(out, "epoch")
    assert [(epoch["stage"], epoch["epoch"]) for epoch in epochs] == [
        ("head", 1),
        ("head", 2),
        ("unfrozen", 1),
        ("unfrozen", 2),
    ]
    assert [round(epoch["lr"], 4) for epoch in epochs] == [0.05, 0.025, 0.05, 0.05]
    assert all(epoch["peak_memory_bytes"] > 1_000_000 for epoch in epochs)
    assert all(0 <= epoch["data_wait_fraction"] <= 1 and epoch["images_per_s"] > 0 for epoch in epochs)


def test_the_first_stage_trains_the_head_alone(
    photos: Path, small_recipe: Path, tmp_path: Path, trainer: Trainer
) -> None:
    torch.manual_seed(recipe.load(str(small_recipe)).seed)
    start = models.build("digits_net", 2).module.state_dict()
    fit(trainer, photos, small_recipe, tmp_path / "run", "--set", "freeze_to=-1")
    end = load_file(tmp_path / "run" / "out" / "weights.safetensors")
    assert {name for name in start if not torch.equal(start[name], end[name])} == {"head.1.weight", "head.1.bias"}


def test_the_seed_decides_the_weights_and_the_number_of_workers_does_not(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    for name, more in {"inline": ("--workers", 0), "threads": ("--workers", 3), "other": ("--seed", 1)}.items():
        assert fit(trainer, photos, small_recipe, tmp_path / name, *more)[0] == 0
    assert weights_of(tmp_path / "inline") == weights_of(tmp_path / "threads") != weights_of(tmp_path / "other")


def test_a_finished_run_is_not_overwritten_and_resuming_it_changes_nothing(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit(trainer, photos, small_recipe, out)
    before = weights_of(out), (out / "out" / "predictions.csv").read_text()
    code, _, complained = fit(trainer, photos, small_recipe, out)
    assert code == 25
    assert "holds a run already" in complained
    assert fit(trainer, photos, small_recipe, out, "--resume")[0] == 0
    assert (weights_of(out), (out / "out" / "predictions.csv").read_text()) == before


def test_another_recipe_or_other_images_do_not_resume_a_run(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit(trainer, photos, small_recipe, out)
    assert fit(trainer, photos, small_recipe, out, "--resume", "--seed", 5)[0] == 25
    (photos / "train" / "cats" / "cats.0.png").unlink()
    code, _, complained = fit(trainer, photos, small_recipe, out, "--resume")
    assert code == 25
    assert "holds a run with another image set" in complained


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04cos\nsystem\n.", save({"network/a": torch.zeros(1)}, {"format": "2"})]
)
def test_a_damaged_checkpoint_is_refused(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "run"
    fit(trainer, photos, small_recipe, out)
    (out / "checkpoints" / "last.safetensors").write_bytes(content)
    code, _, complained = fit(trainer, photos, small_recipe, out, "--resume")
    assert code == 25
    assert "cannot be read" in complained


def test_broken_images_are_counted_named_and_skipped_unless_strict(
    trainer: Trainer, events: Events, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    (photos / "train" / "cats" / "cats.3.png").write_bytes(b"no image")
    (photos / "valid" / "dogs" / "dogs.1.png").write_bytes(b"")
    code, said, _ = fit(trainer, photos, small_recipe, tmp_path / "run")
    assert code == 0
    assert "skipped: 2 images that cannot be decoded:\n  train/cats/cats.3.png: " in said
    assert [image["name"] for image in events(tmp_path / "run", "skipped")[0]["images"]] == [
        "train/cats/cats.3.png",
        "valid/dogs/dogs.1.png",
    ]
    summary = json.loads((tmp_path / "run" / "out" / "summary.json").read_text())
    assert summary["skipped"] == ["train/cats/cats.3.png", "valid/dogs/dogs.1.png"]
    code, said, complained = fit(trainer, photos, small_recipe, tmp_path / "strict", "--strict")
    assert code == 22
    assert "train/cats/cats.3.png" in said
    assert complained.startswith("error: 2 images cannot be decoded.")


def test_a_class_that_lost_all_its_images_is_refused_by_name(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    for file in (photos / "valid" / "dogs").iterdir():
        file.write_bytes(b"no image")
    code, _, complained = fit(trainer, photos, small_recipe, tmp_path / "run")
    assert code == 21
    assert "No validation image of dogs can be decoded" in complained


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--data", "/nowhere"], 21, "There is no folder '/nowhere'"),
        (["--set", "arch=resnet43"], 20, "did you mean 'resnet34'?"),
        (["--set", "lr=[1,2,3]"], 20, "has 3 learning rates, but digits_net has 2 layer groups"),
        (["--weights", "/nowhere.safetensors"], 24, "There is no weights file /nowhere.safetensors"),
        (["--weights", "imagenet"], 24, "no ImageNet weights for digits_net"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    returned, _, complained = fit(trainer, photos, small_recipe, tmp_path / "run", *arguments)
    assert returned == code
    assert sentence in complained
    assert complained.startswith("error: ") and complained.count("\n") == 1


def test_a_loss_that_is_no_number_ends_the_run(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    broken = models.build("digits_net", 2).module.state_dict()
    broken["body.0.weight"] = torch.full_like(broken["body.0.weight"], 3e38)  # finite; its sums are not
    save_file(broken, tmp_path / "huge.safetensors")
    weights = ("--weights", tmp_path / "huge.safetensors")
    code, _, complained = fit(trainer, photos, small_recipe, tmp_path / "run", *weights)
    assert code == 27
    assert "The loss is no longer a number in stage 'head', epoch 1" in complained


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_one_sentence(trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").symlink_to("/dev/full")
    code, _, complained = fit(trainer, photos, small_recipe, out)
    assert code == 26
    assert complained.startswith("error: The disk is full: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everywhere")
def test_no_permission_is_one_sentence(trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=stat.S_IRUSR)
    assert fit(trainer, photos, small_recipe, closed / "run")[0] == 25
    (photos / "train").chmod(0)
    assert fit(trainer, photos, small_recipe, tmp_path / "run")[0] == 21
    (photos / "train").chmod(stat.S_IRWXU)


def test_an_out_that_is_a_file_is_refused(trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert fit(trainer, photos, small_recipe, tmp_path / "run")[0] == 25


def test_one_folder_of_classes_is_trained_on_with_its_split(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    shutil.rmtree(photos / "valid")
    code, said, _ = fit(trainer, photos / "train", small_recipe, tmp_path / "run", "--set", "data.valid_fraction=0.25")
    assert code == 0
    assert "18 training, 6 validation images" in said
