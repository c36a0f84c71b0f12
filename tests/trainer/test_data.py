import shutil
from pathlib import Path

import pytest
from PIL import Image

from trainer import data
from trainer.data.batches import parts
from trainer.data.pixels import decode_all
from trainer.errors import DataRefused
from trainer.recipe import DataOptions

OPTIONS = DataOptions()


def refusal(source: object) -> str:
    with pytest.raises(DataRefused) as refused:
        data.find(str(source), OPTIONS)
    return str(refused.value)


def test_train_and_valid_folders_are_taken_as_they_are(photos: Path) -> None:
    found = data.find(str(photos), OPTIONS)
    assert found.classes == ("cats", "dogs")
    assert [len(found.train), len(found.valid)] == [24, 8]
    assert found.valid[0].name == "valid/cats/cats.0.png"
    assert {sample.label for sample in found.train} == {0, 1}


def test_one_folder_of_classes_is_split_in_every_class_alike(photos: Path) -> None:
    found = data.find(str(photos / "train"), DataOptions(valid_fraction=0.25))
    assert [sum(sample.label == label for sample in found.valid) for label in (0, 1)] == [3, 3]
    assert not {sample.name for sample in found.train} & {sample.name for sample in found.valid}
    assert len(found.train) + len(found.valid) == 24


def test_the_split_follows_from_its_seed_alone(photos: Path) -> None:
    def names(split_seed: int) -> list[str]:
        return [sample.name for sample in data.find(str(photos / "train"), DataOptions(split_seed=split_seed)).valid]

    assert names(0) == names(0) != names(1)


def test_the_digits_are_1797_in_ten_classes() -> None:
    found = data.find("digits", OPTIONS)
    assert len(found.classes) == 10
    assert [len(found.train), len(found.valid)] == [1437, 360]
    image = found.train[0].read()
    assert image.shape == (3, 8, 8)
    assert int(image.max()) == 239  # shade 15 of 16


def test_files_that_are_no_images_are_named(photos: Path) -> None:
    (photos / "train" / "cats" / "notes.txt").write_text("")
    (photos / "train" / "cats" / ".DS_Store").write_text("")
    (photos / "train" / "list.csv").write_text("")
    assert set(data.find(str(photos), OPTIONS).ignored) == {"train/cats/notes.txt", "train/list.csv"}


def test_a_missing_folder_is_refused() -> None:
    assert "There is no folder '/nowhere'" in refusal("/nowhere")


def test_a_misspelt_built_in_set_is_refused_with_the_closest() -> None:
    assert "did you mean 'digits'?" in refusal("digit")


def test_no_data_at_all_is_refused() -> None:
    assert "--data" in refusal("")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "has no class folders" in refusal(tmp_path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    assert "is not a folder" in refusal(tmp_path / "photo.jpg")


def test_classes_without_images_are_refused_by_name(photos: Path) -> None:
    (photos / "train" / "owls").mkdir()
    assert "No images in 'owls'" in refusal(photos)


def test_classes_that_differ_between_train_and_valid_are_refused_by_name(photos: Path) -> None:
    shutil.copytree(photos / "train" / "dogs", photos / "train" / "owls")
    assert "'owls' in" in refusal(photos)
    shutil.move(photos / "train" / "owls", photos / "valid" / "bees")
    assert "'bees' in" in refusal(photos)


def test_train_without_valid_is_refused(photos: Path) -> None:
    shutil.rmtree(photos / "valid")
    assert "has train/ but no valid/" in refusal(photos)


def test_one_class_is_refused(photos: Path) -> None:
    shutil.rmtree(photos / "train" / "dogs")
    assert "only one class, 'cats'" in refusal(photos / "train")


def test_a_class_too_small_to_split_is_refused(photos: Path) -> None:
    for file in sorted((photos / "train" / "cats").iterdir())[1:]:
        file.unlink()
    assert "cannot be split" in refusal(photos / "train")


def test_pixels_come_back_in_order_at_the_shorter_side_asked_for(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 90), (1, 2, 3)).save(photos / "train" / "cats" / "a.png")
    samples = data.find(str(photos), OPTIONS).train
    pixels, unreadable = decode_all(samples, 16, tmp_path, workers=2, on_image=lambda: None)
    assert not unreadable
    assert pixels.names == [sample.name for sample in samples]
    assert pixels[0].shape == (3, 48, 16)
    assert pixels[0][:, 0, 0].tolist() == [1, 2, 3]
    assert pixels[1].shape == (3, 16, 19)


def test_the_cache_leaves_no_file_behind(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    pixels, _ = decode_all(data.find(str(photos), OPTIONS).train, 16, cache, workers=1, on_image=lambda: None)
    assert len(pixels) == 24
    assert list(cache.iterdir()) == []


def test_broken_images_are_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "cats" / "cats.3.png").write_bytes(b"no image")
    pixels, unreadable = decode_all(
        data.find(str(photos), OPTIONS).train, 16, tmp_path, workers=2, on_image=lambda: None
    )
    assert [image.name for image in unreadable] == ["train/cats/cats.3.png"]
    assert len(pixels) == len(pixels.labels) == 23


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1])])
def test_a_last_batch_of_one_joins_the_batch_before(count: int, sizes: list[int]) -> None:
    assert [len(part) for part in parts(range(count), 4)] == sizes
    assert [index for part in parts(range(count), 4) for index in part] == list(range(count))
