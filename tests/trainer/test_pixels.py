"""The cache of decoded images: what it holds, when it is made again, and what it makes of a hostile file."""

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import data
from trainer.data import Sample
from trainer.data.pixels import LIBRARIES, SHARD_IMAGES, Pixels, Unreadable, cache_key, load
from trainer.decode import UnreadableImage
from trainer.errors import Stopped
from trainer.recipe import DataOptions


@pytest.fixture
def samples(photos: Path) -> tuple[Sample, ...]:
    return data.find(str(photos), DataOptions()).train


def loaded(
    samples: Sequence[Sample],
    cache: Path,
    side_px: int = 16,
    workers: int = 2,
    on_image: Callable[[], None] = lambda: None,
) -> tuple[Pixels, list[Unreadable]]:
    return load(samples, 2, False, side_px, cache, workers, on_image)


def counted(samples: Sequence[Sample], read: list[str]) -> list[Sample]:
    """The same samples, each noting its name when it is decoded."""

    def noting(sample: Sample) -> Callable[[], Tensor]:
        return lambda: read.append(sample.name) or sample.read()  # type: ignore[func-returns-value]

    return [replace(sample, read=noting(sample)) for sample in samples]


def many(count: int) -> list[Sample]:
    """Images of 8 px that need no file, more than a shard takes."""
    return [
        Sample(
            name=str(index),
            labels=(0,),
            read=lambda index=index: torch.full((3, 8, 8), index % 251, dtype=torch.uint8),
            digest=lambda index=index: str(index),
        )
        for index in range(count)
    ]


def test_pixels_come_back_in_order_at_the_shorter_side_asked_for(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 90), (1, 2, 3)).save(photos / "train" / "cats" / "a.png")
    samples = data.find(str(photos), DataOptions()).train
    pixels, unreadable = loaded(samples, tmp_path)
    assert not unreadable
    assert pixels.names == [sample.name for sample in samples]
    assert pixels.digests == [sample.digest() for sample in samples]
    assert pixels[0].shape == (3, 48, 16)
    assert pixels[0][:, 0, 0].tolist() == [1, 2, 3]
    assert pixels[1].shape == (3, 16, 19)


def test_targets_are_class_indices_or_rows_of_zero_and_one(tmp_path: Path) -> None:
    samples = [replace(sample, labels=labels) for sample, labels in zip(many(3), [(0,), (2,), (1,)], strict=True)]
    pixels, _ = load(samples, 3, False, 8, tmp_path, 0, lambda: None)
    assert (pixels.targets.tolist(), pixels.targets.dtype) == ([0, 2, 1], torch.int64)
    samples = [replace(sample, labels=labels) for sample, labels in zip(samples, [(), (0, 2), (1,)], strict=True)]
    pixels, _ = load(samples, 3, True, 8, tmp_path, 0, lambda: None)
    assert (pixels.targets.tolist(), pixels.targets.dtype) == ([[0, 0, 0], [1, 0, 1], [0, 1, 0]], torch.float32)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_number_of_workers_changes_nothing(samples: Sequence[Sample], tmp_path: Path, workers: int) -> None:
    pixels, _ = loaded(samples, tmp_path / "some", workers=workers)
    alone, _ = loaded(samples, tmp_path / "one", workers=1)
    assert pixels.names == alone.names
    assert all(torch.equal(pixels[index], alone[index]) for index in range(len(alone)))
    files = [
        [(file.relative_to(folder), file.read_bytes()) for file in folder.rglob("*.safetensors")]
        for folder in (tmp_path / "some", tmp_path / "one")
    ]
    assert files[0] == files[1]


def test_a_second_run_decodes_nothing(samples: Sequence[Sample], tmp_path: Path) -> None:
    first, _ = loaded(samples, tmp_path)
    read: list[str] = []
    again, _ = loaded(counted(samples, read), tmp_path)
    assert read == []
    assert all(torch.equal(first[index], again[index]) for index in range(len(first)))


def test_renamed_files_are_not_decoded_again(photos: Path, samples: Sequence[Sample], tmp_path: Path) -> None:
    loaded(samples, tmp_path / "cache")
    photos.rename(tmp_path / "moved")
    read: list[str] = []
    pixels, _ = loaded(counted(data.find(str(tmp_path / "moved"), DataOptions()).train, read), tmp_path / "cache")
    assert (read, len(pixels)) == ([], 24)


def test_another_size_content_or_order_is_decoded_again(
    photos: Path, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    loaded(samples, tmp_path)
    read: list[str] = []
    loaded(counted(samples, read), tmp_path, side_px=17)
    assert len(read) == 24
    loaded(counted(samples[::-1], read), tmp_path)
    assert len(read) == 48
    Image.new("RGB", (20, 20)).save(photos / "train" / "cats" / "cats.0.png")
    pixels, _ = loaded(counted(samples, read), tmp_path)
    assert len(read) == 72
    assert not pixels[0].any()


def test_each_part_of_the_key_makes_another_key() -> None:
    base = cache_key(["a", "b"], 16)
    assert base == cache_key(["a", "b"], 16)
    others = [cache_key(["b", "a"], 16), cache_key(["a"], 16), cache_key(["a", "b"], 17)]
    others += [cache_key(["a", "b"], 16, LIBRARIES | {part: "another"}) for part in LIBRARIES]
    assert len({base, *others}) == 1 + len(others)


def test_an_interrupted_filling_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    samples = many(2 * SHARD_IMAGES + 10)
    calls = 0

    def stop_in_the_second_shard() -> None:
        nonlocal calls
        calls += 1
        if calls == len(samples) + SHARD_IMAGES + 5:  # after all were hashed
            raise Stopped(15)

    with pytest.raises(Stopped):
        loaded(samples, tmp_path, side_px=8, on_image=stop_in_the_second_shard)
    read: list[str] = []
    pixels, _ = loaded(counted(samples, read), tmp_path, side_px=8)
    assert sorted(map(int, read)) == list(range(SHARD_IMAGES, len(samples)))
    assert [int(pixels[index][0, 0, 0]) for index in range(len(samples))] == [i % 251 for i in range(len(samples))]


def test_broken_images_are_left_out_and_named_also_the_second_time(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "cats" / "cats.3.png").write_bytes(b"no image")
    samples = data.find(str(photos), DataOptions()).train
    pixels, unreadable = loaded(samples, tmp_path)
    assert [image.name for image in unreadable] == ["train/cats/cats.3.png"]
    assert len(pixels) == len(pixels.labels) == len(pixels.targets) == 23
    read: list[str] = []
    again, unreadable_again = loaded(counted(samples, read), tmp_path)
    assert (read, unreadable_again) == ([], unreadable)
    assert again.names == pixels.names
    assert all(torch.equal(pixels[index], again[index]) for index in range(len(pixels)))


def test_only_broken_images_leave_nothing(photos: Path, tmp_path: Path) -> None:
    samples = data.find(str(photos), DataOptions()).train
    for sample in samples:
        (photos / sample.name).write_bytes(b"no image")
    pixels, unreadable = loaded(samples, tmp_path)
    assert (len(pixels), len(unreadable), len(pixels.targets)) == (0, 24, 0)


def test_a_file_that_is_gone_is_named(photos: Path, samples: Sequence[Sample], tmp_path: Path) -> None:
    (photos / "train" / "cats" / "cats.3.png").unlink()
    pixels, unreadable = loaded(samples, tmp_path)
    assert unreadable == [Unreadable(name="train/cats/cats.3.png", reason="No such file or directory")]
    assert len(pixels) == 23


def test_a_failure_that_may_pass_is_not_kept(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    def fail() -> Tensor:
        raise UnreadableImage(Path("cats.0.png"), "too many open files", lasting=False)

    _, unreadable = loaded([replace(samples[0], read=fail), *samples[1:]], tmp_path)
    assert [image.reason for image in unreadable] == ["too many open files"]
    pixels, unreadable = loaded(samples, tmp_path)
    assert (len(pixels), unreadable) == (24, [])


def damage(change: Callable[[dict[str, Tensor]], None], metadata: dict[str, str] | None = None) -> object:
    def write(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, {"items": "24", **(metadata or {})})

    return write


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(pickle.dumps(Hostile())),
        lambda path: torch.save(Hostile(), path),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        damage(lambda tensors: tensors.update(shapes=tensors["shapes"] * 2)),
        damage(lambda tensors: tensors.update(shapes=tensors["shapes"].flip(1))),
        damage(lambda tensors: tensors.update(shapes=tensors["shapes"].float())),
        damage(lambda tensors: tensors.update(shapes=tensors["shapes"][:-1])),
        damage(lambda tensors: tensors.update(shapes=torch.zeros(24, 2, dtype=torch.int64))),
        damage(lambda tensors: tensors.update(shapes=torch.full((24, 3), -1))),
        damage(lambda tensors: tensors.update(pixels=tensors["pixels"][:-1].clone())),
        damage(lambda tensors: tensors.update(pixels=tensors["pixels"].float())),
        damage(lambda tensors: tensors.update(pixels=tensors["pixels"].view(3, -1).clone())),
        damage(lambda tensors: tensors.pop("shapes")),
        damage(lambda tensors: None, {"3": "a reason for an image that has pixels"}),
    ],
)
def test_a_hostile_or_damaged_cache_file_is_made_again(
    samples: Sequence[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, _ = loaded(samples, tmp_path / "cache")
    kept = [image.clone() for image in (first[index] for index in range(24))]
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    content = file.read_bytes()
    beside = file.with_name("beside")
    beside.write_bytes(content)
    write(beside)
    beside.replace(file)
    again, unreadable = loaded(samples, tmp_path / "cache")
    assert not unreadable
    assert all(torch.equal(kept[index], again[index]) for index in range(24))
    assert file.read_bytes() == content
    assert not (tmp_path / "ran").exists()
