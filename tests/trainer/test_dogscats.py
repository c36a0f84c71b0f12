"""Real photographs with pretrained features, where `shared/` lies beside the checkout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import data
from trainer.recipe import DataOptions

SHARED = Path(__file__).parents[2].parent / "shared"
PHOTOS = SHARED / "data" / "dogscats"
WEIGHTS = SHARED / "weights" / "mobilenet_v2-imagenet.safetensors"

pytestmark = pytest.mark.skipif(not (PHOTOS.exists() and WEIGHTS.exists()), reason=f"{PHOTOS} or {WEIGHTS} is not here")


def test_all_2002_photographs_are_found() -> None:
    found = data.find(str(PHOTOS), DataOptions())
    assert (found.classes, len(found.train), len(found.valid)) == (("cats", "dogs"), 1602, 400)


def test_a_pretrained_head_tells_cats_from_dogs_after_160_photographs(
    trainer: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for part, count in (("train", 80), ("valid", 40)):
        for name in ("cats", "dogs"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for photo in sorted((PHOTOS / part / name).iterdir())[:count]:
                (folder / photo.name).symlink_to(photo)
    overrides = ["size_px=96", "epochs=2", "batch_size=16"]
    code, said, _ = trainer(
        "fit",
        "mobilenet_photos",
        "--data",
        tmp_path / "photos",
        "--weights",
        WEIGHTS,
        "--out",
        tmp_path / "run",
        "--allow-cpu",
        "--set",
        *overrides,
    )
    assert code == 0
    assert "weights: 312 tensors from" in said
    assert "new: head.0.weight, head.0.bias" in said
    assert json.loads((tmp_path / "run" / "out" / "summary.json").read_text())["accuracy"] >= 0.85
