import os
import shutil
from pathlib import Path

import pytest

from trainer import data
from trainer.data.batches import parts
from trainer.errors import DataRefused, RecipeRefused
from trainer.recipe import DataOptions

OPTIONS = DataOptions()


def refusal(source: object, options: DataOptions = OPTIONS) -> str:
    with pytest.raises(DataRefused) as refused:
        data.find(str(source), options)
    return str(refused.value)


def test_train_and_valid_folders_are_taken_as_they_are(photos: Path) -> None:
    found = data.find(str(photos), OPTIONS)
    assert found.classes == ("cats", "dogs")
    assert [len(found.train), len(found.valid)] == [24, 8]
    assert found.valid[0].name == "valid/cats/cats.0.png"
    assert {sample.labels for sample in found.train} == {(0,), (1,)}


def test_one_folder_of_classes_is_split_in_every_class_alike(photos: Path) -> None:
    found = data.find(str(photos / "train"), DataOptions(valid_fraction=0.25))
    assert [sum(sample.labels == (label,) for sample in found.valid) for label in (0, 1)] == [3, 3]
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
    assert found.train[0].digest() != found.train[1].digest()


def test_class_folders_give_one_label_unless_the_recipe_says_otherwise(photos: Path) -> None:
    inferred, stated = (data.find(str(photos), DataOptions(labels=labels)) for labels in ("infer", "multi"))
    assert (inferred.multi_label, inferred.why) == (False, "inferred: class folders give every image one label")
    assert (stated.multi_label, stated.why) == (True, "stated in the recipe")


def test_val_is_another_name_for_valid(photos: Path) -> None:
    shutil.move(photos / "valid", photos / "val")
    assert data.find(str(photos), OPTIONS).valid[0].name == "val/cats/cats.0.png"


def test_a_test_folder_of_classes_is_the_test_part(photos: Path) -> None:
    assert data.find(str(photos), OPTIONS).test == ()
    shutil.copytree(photos / "valid", photos / "test")
    found = data.find(str(photos), OPTIONS)
    assert [len(found.parts[part]) for part in ("train", "valid", "test")] == [24, 8, 8]
    shutil.move(photos / "test" / "dogs", photos / "test" / "bees")
    assert "'bees' in" in refusal(photos)


def test_a_test_folder_of_unlabelled_images_is_ignored(photos: Path) -> None:
    shutil.copytree(photos / "valid" / "dogs", photos / "test")
    found = data.find(str(photos), OPTIONS)
    assert (found.test, found.ignored) == ((), ("test",))


def test_a_test_fraction_is_taken_from_every_class_first(photos: Path) -> None:
    found = data.find(str(photos / "train"), DataOptions(test_fraction=0.25, valid_fraction=0.25))
    assert [len(part) for part in found.parts.values()] == [12, 6, 6]
    assert [sum(sample.labels == (label,) for sample in found.test) for label in (0, 1)] == [3, 3]
    names = [sample.name for part in found.parts.values() for sample in part]
    assert len(set(names)) == len(names) == 24


def test_every_image_is_in_the_validation_part_of_one_fold(photos: Path) -> None:
    folds = [data.find(str(photos / "train"), DataOptions(folds=4, fold=fold, test_fraction=0.1)) for fold in range(4)]
    assert len({tuple(sample.name for sample in found.test) for found in folds}) == 1
    valid = [sample.name for found in folds for sample in found.valid]
    assert len(set(valid)) == len(valid) == 24 - len(folds[0].test)
    for found in folds:
        assert not {sample.name for sample in found.train} & {sample.name for sample in found.valid}
        shares = [sum(sample.labels == (label,) for sample in found.valid) for label in (0, 1)]
        assert abs(shares[0] - shares[1]) <= 1


def test_more_folds_than_images_of_a_class_are_refused_by_its_name(photos: Path) -> None:
    for file in sorted((photos / "train" / "cats").iterdir())[3:]:
        file.unlink()
    assert "'cats' has 3 images and cannot be split into 4 parts" in refusal(photos / "train", DataOptions(folds=4))


@pytest.mark.parametrize("options", [DataOptions(folds=3), DataOptions(test_fraction=0.1)])
def test_a_set_that_is_split_already_is_not_split_again(photos: Path, options: DataOptions) -> None:
    assert "is split already" in refusal(photos, options)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"folds": 1}, "no fold 0 of 1"),
        ({"folds": 4, "fold": 4}, "no fold 4 of 4"),
        ({"fold": 1}, "no fold 1 of 0"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"labels": "both"}, "labels is 'both'"),
    ],
)
def test_options_that_cannot_be_are_refused(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeRefused, match=sentence):
        DataOptions(**table)  # type: ignore[arg-type]


def test_files_that_are_no_images_are_named(photos: Path) -> None:
    (photos / "train" / "cats" / "notes.txt").write_text("")
    (photos / "train" / "cats" / ".DS_Store").write_text("")
    (photos / "train" / "list.csv").write_text("")
    os.mkfifo(photos / "train" / "cats" / "pipe.jpg")
    assert set(data.find(str(photos), OPTIONS).ignored) == {
        "train/cats/notes.txt",
        "train/cats/pipe.jpg",
        "train/list.csv",
    }


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
    assert "'cats' has 1 images and cannot be split" in refusal(photos / "train")


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1])])
def test_a_last_batch_of_one_joins_the_batch_before(count: int, sizes: list[int]) -> None:
    assert [len(part) for part in parts(range(count), 4)] == sizes
    assert [index for part in parts(range(count), 4) for index in part] == list(range(count))
