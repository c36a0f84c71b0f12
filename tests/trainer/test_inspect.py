import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import data
from trainer.data.inspect import Findings, Pair, across_the_split, inspect, lines, run
from trainer.data.pixels import Pixels, load
from trainer.recipe import DataOptions

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "dogscats"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Six images of smooth spots, 60×48 px, in each of two classes of both parts, no two alike."""
    root = tmp_path / "scenes"
    seed = 0
    for part in ("train", "valid"):
        for name in ("cats", "dogs"):
            (root / part / name).mkdir(parents=True)
            for index in range(6):
                seed += 1
                spots = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
                Image.fromarray(spots).resize((60, 48)).save(root / part / name / f"{index}.png")
    return root


def found(root: Path, workers: int = 1) -> Findings:
    return inspect(data.find(str(root), DataOptions()), workers)


def every_pair(findings: Findings) -> list[Pair]:
    return [pair for pairs in findings.pairs.values() for pair in pairs]


def test_a_set_of_different_images_has_no_pairs(scenes: Path) -> None:
    assert every_pair(found(scenes)) == []


def test_an_equal_file_is_found_within_a_part_and_across_the_split(scenes: Path) -> None:
    shutil.copy(scenes / "train" / "cats" / "0.png", scenes / "train" / "cats" / "copy.png")
    shutil.copy(scenes / "train" / "cats" / "0.png", scenes / "valid" / "dogs" / "copy.png")
    findings = found(scenes)
    assert findings.pairs["train", "train"] == [
        Pair(first="train/cats/0.png", second="train/cats/copy.png", exact=True, labels_differ=False)
    ]
    assert findings.pairs["train", "valid"] == [
        Pair(first="train/cats/0.png", second="valid/dogs/copy.png", exact=True, labels_differ=True)
    ]
    assert findings.pairs["valid", "valid"] == []


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((40, 32)),
    "stretched": lambda image: image.resize((48, 48)),
    "grey": lambda image: image.convert("L"),
    "dimmed": lambda image: image.point(lambda shade: shade * 0.8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_nearly_the_same(scenes: Path, change: str) -> None:
    with Image.open(scenes / "train" / "cats" / "0.png") as image:
        CHANGES[change](image).save(scenes / "valid" / "cats" / "copy.jpg", quality=40)
    pair = Pair(first="train/cats/0.png", second="valid/cats/copy.jpg", exact=False, labels_differ=False)
    assert every_pair(found(scenes)) == [pair]


def test_blank_images_are_not_alike_because_they_are_blank(scenes: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        blank = (250 + rng.integers(0, 2, (48, 60, 3))).astype(np.uint8)
        Image.fromarray(blank).save(scenes / "train" / "cats" / f"blank{index}.png")
    assert every_pair(found(scenes)) == []


def test_images_too_small_to_tell_apart_are_the_same_only_byte_by_byte() -> None:
    assert every_pair(inspect(data.find("digits", DataOptions()), 1)) == []


def test_many_copies_of_one_image_make_one_pair_each(scenes: Path) -> None:
    for index in range(30):
        shutil.copy(scenes / "train" / "cats" / "0.png", scenes / "train" / "cats" / f"copy{index}.png")
    findings = found(scenes)
    assert len(findings.pairs["train", "train"]) == 30
    assert "  and 10 more" in lines(findings)


@pytest.mark.parametrize("workers", [0, 3])
def test_the_number_of_workers_changes_nothing(scenes: Path, workers: int) -> None:
    shutil.copy(scenes / "train" / "cats" / "0.png", scenes / "valid" / "dogs" / "copy.png")
    assert lines(found(scenes, workers)) == lines(found(scenes))


def test_the_report_names_counts_sizes_and_broken_files(scenes: Path) -> None:
    Image.new("RGB", (9, 7)).save(scenes / "train" / "cats" / "small.png")
    (scenes / "valid" / "dogs" / "0.png").write_bytes(b"no image")
    (scenes / "train" / "notes.txt").touch()
    shutil.copytree(scenes / "valid", scenes / "test")
    report = run(str(scenes), DataOptions(), 1)
    assert report[0] == "2 classes, one label per image (inferred: class folders give every image one label)"
    rows = [line.split() for line in report[1:5]]
    assert rows[0] == ["train", "valid", "test"]
    assert rows[1:] == [["cats", "7", "6", "6"], ["dogs", "6", "6", "6"], ["images", "13", "12", "12"]]
    assert "sizes: smallest 9×7 px, median 60×48 px, largest 60×48 px" in report
    assert report[report.index("ignored: 1") + 1] == "  train/notes.txt"
    assert "  valid/dogs/0.png: not an image of a known kind (JPEG, PNG, WEBP, BMP, GIF)" in report
    assert "the same image twice in valid and in test: 11" in report
    assert "the same image twice within valid: none" in report


def test_a_differing_label_is_marked(scenes: Path) -> None:
    shutil.copy(scenes / "train" / "cats" / "0.png", scenes / "train" / "dogs" / "copy.png")
    report = run(str(scenes), DataOptions(), 1)
    assert "  train/cats/0.png and train/dogs/copy.png (the same file, LABELS DIFFER)" in report


def test_a_set_without_any_readable_image_is_reported(scenes: Path) -> None:
    for file in scenes.rglob("*.png"):
        file.write_bytes(b"no image")
    report = run(str(scenes), DataOptions(), 1)
    assert "unreadable: 24" in report
    assert not any(line.startswith("sizes") for line in report)


def cached(root: Path, cache: Path) -> tuple[Pixels, Pixels]:
    """Both parts as a run holds them: the training images larger."""
    samples = data.find(str(root), DataOptions())
    parts = ((samples.train, 35), (samples.valid, 32))
    train, valid = (load(part, 2, False, side_px, cache, 1, lambda: None)[0] for part, side_px in parts)
    return train, valid


def test_a_run_finds_the_pairs_across_its_split_in_the_cached_pixels(scenes: Path, tmp_path: Path) -> None:
    assert across_the_split(*cached(scenes, tmp_path / "cache")) == []
    shutil.copy(scenes / "train" / "cats" / "0.png", scenes / "train" / "cats" / "within.png")
    shutil.copy(scenes / "train" / "cats" / "1.png", scenes / "valid" / "dogs" / "equal.png")
    with Image.open(scenes / "train" / "cats" / "2.png") as image:
        image.save(scenes / "valid" / "cats" / "near.jpg")
    assert across_the_split(*cached(scenes, tmp_path / "cache")) == [
        Pair(first="train/cats/2.png", second="valid/cats/near.jpg", exact=False, labels_differ=False),
        Pair(first="train/cats/1.png", second="valid/dogs/equal.png", exact=True, labels_differ=True),
    ]


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not here")
def test_the_photograph_on_both_sides_of_dogscats_is_found_and_nothing_else() -> None:
    pairs = every_pair(inspect(data.find(str(SHARED), DataOptions()), 2))
    assert pairs == [
        Pair(first="train/dogs/dog.180.jpg", second="valid/dogs/dog.74.jpg", exact=False, labels_differ=False)
    ]
