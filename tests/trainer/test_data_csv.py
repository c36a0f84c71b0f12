import shutil
from pathlib import Path

import pytest

from trainer import data
from trainer.errors import DataRefused
from trainer.recipe import DataOptions

LABELS = ["a", "b", "a b", "b c", "c", "a", "b", "c"]


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Eight images, 0.png to 7.png, and two more below `more/`."""
    root = tmp_path / "labelled"
    (root / "more").mkdir(parents=True)
    for index, file in enumerate(sorted((photos / "train" / "cats").iterdir())[:10]):
        shutil.copy(file, root / (f"{index}.png" if index < 8 else f"more/{index}.png"))
    return root


def write(folder: Path, rows: list[str], header: str = "image,labels") -> None:
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def options(labels: str = "infer", **more: object) -> DataOptions:
    return DataOptions(labels_csv="labels.csv", labels=labels, valid_fraction=0.4, **more)  # type: ignore[arg-type]


def refusal(folder: Path, labels: str = "infer", **more: object) -> str:
    with pytest.raises(DataRefused) as refused:
        data.find(str(folder), options(labels, **more))
    return str(refused.value)


def test_several_labels_in_a_line_make_a_multi_label_set_and_it_says_why(folder: Path) -> None:
    write(folder, [f"{index}.png,{labels}" for index, labels in enumerate(LABELS)])
    found = data.find(str(folder), options())
    assert (found.multi_label, found.why) == (True, "inferred: line 4 has 2 labels")
    assert found.classes == ("a", "b", "c")
    labels = {sample.name: sample.labels for part in found.parts.values() for sample in part}
    assert labels["2.png"] == (0, 1)
    assert labels["3.png"] == (1, 2)
    assert len(labels) == 8


def test_a_label_written_twice_is_one_label(folder: Path) -> None:
    write(folder, [f"{index}.png,{'ab'[index % 2]} {'ab'[index % 2]}" for index in range(8)])
    assert not data.find(str(folder), options()).multi_label


def test_one_label_in_each_line_makes_a_single_label_set_split_in_every_class_alike(folder: Path) -> None:
    write(folder, [f"{index}.png,{'ab'[index % 2]}" for index in range(8)])
    found = data.find(str(folder), options(test_fraction=0.25))
    assert (found.multi_label, found.why) == (False, "inferred: no line has more than one label")
    for part in found.parts.values():
        assert sum(sample.labels == (0,) for sample in part) * 2 == len(part)


def test_what_the_recipe_states_is_not_inferred(folder: Path) -> None:
    write(folder, [f"{index}.png,{'ab'[index % 2]}" for index in range(8)])
    found = data.find(str(folder), options("multi"))
    assert (found.multi_label, found.why) == (True, "stated in the recipe")


def test_the_folds_of_a_multi_label_set_hold_every_image_once(folder: Path) -> None:
    write(folder, [f"{index}.png,{labels}" for index, labels in enumerate(LABELS)])
    folds = [data.find(str(folder), options(folds=4, fold=fold)).valid for fold in range(4)]
    assert sorted(sample.name for fold in folds for sample in fold) == [f"{index}.png" for index in range(8)]
    assert "8 images cannot be split into 9 folds" in refusal(folder, folds=9)


def test_images_without_a_line_are_ignored_by_name(folder: Path) -> None:
    write(folder, [f"{index}.png,{'ab'[index % 2]}" for index in range(8)])
    assert data.find(str(folder), options()).ignored == ("more/8.png", "more/9.png")


def test_an_extension_may_be_left_out(folder: Path) -> None:
    write(folder, [f"{index},{'ab'[index % 2]}" for index in range(8)] + ["more/8,a"])
    assert "more/8.png" in {sample.name for part in data.find(str(folder), options()).parts.values() for sample in part}
    shutil.copy(folder / "0.png", folder / "0.bmp")
    assert "line 2: '0' may be '0.bmp', '0.png'" in refusal(folder)


def test_a_byte_order_mark_spaces_and_quotes_are_no_part_of_a_name(folder: Path) -> None:
    rows = [f' {index}.png ,"{"ab"[index % 2]} "' for index in range(8)]
    (folder / "labels.csv").write_text("\r\n".join(["image,labels", *rows]), encoding="utf-8-sig", newline="")
    assert data.find(str(folder), options()).classes == ("a", "b")


def test_an_empty_label_means_none_only_where_the_recipe_says_multi(folder: Path) -> None:
    write(folder, [f"{index}.png,{labels}" for index, labels in enumerate(LABELS[:-1])] + ["7.png,"])
    found = data.find(str(folder), options("multi"))
    assert {sample.name: sample.labels for part in found.parts.values() for sample in part}["7.png"] == ()
    assert "line 9: '7.png' has no label" in refusal(folder)
    assert 'data.labels = "multi"' in refusal(folder)


def test_two_labels_where_the_recipe_says_single_are_refused_by_line(folder: Path) -> None:
    write(folder, [f"{index}.png,{labels}" for index, labels in enumerate(LABELS)])
    assert "labels.csv, line 4 has the labels a b" in refusal(folder, "single")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["0.png,a", "no.png,b", "nor.png,b"], "labels 2 images that are not there: 'no.png', 'nor.png'"),
        (["0.png,a", "1.png,b", "0.png,b"], "labels '0.png' in the lines 2 and 4"),
        (["0.png,a", "1.png,b", "0,a"], "labels '0.png' in the lines 2 and 4"),
        (["0.png,a", "../photos/train/cats/cats.0.png,b"], "line 3: '../photos/train/cats/cats.0.png' is not a path"),
        (["0.png,a", "more/../1.png,b"], "is not a path below the data folder"),
        (["/etc/passwd,a"], "line 2: '/etc/passwd' is not a path below"),
        (["C:\\\\photo.png,a"], "is not a path below"),
        (["0.png,a", "1.png,a"], "only the classes 'a'"),
        (["0.png,", "1.png,"], "'0.png' has no label"),
        (["0.png,a", "1.png,a,b"], "line 3 has 3 columns, the header 2"),
        (["0.png,a", "1.png"], "line 3 has 1 columns, the header 2"),
        ([], "no header of two columns with lines below it"),
        (["0.png;a"], "line 2 has 1 columns"),
    ],
)
def test_a_wrong_line_is_refused_by_name(folder: Path, rows: list[str], sentence: str) -> None:
    write(folder, rows)
    assert sentence in refusal(folder)


@pytest.mark.parametrize("first", ["0.png,a", "0,a"])
def test_a_csv_without_a_header_is_refused(folder: Path, first: str) -> None:
    write(folder, ["1.png,b"], header=first)
    assert "The first line of" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        "image,labels\n0.png,caf\u00e9\n".encode("latin-1"),
        b"\x80\x04\x95cposix\nmkdir\n",
        "image,labels\n0.png,a\n".encode("utf-16"),
        b'image,labels\n0.png,"' + b"a" * 200_000 + b'"\n',
    ],
)
def test_what_is_no_csv_in_utf_8_is_refused(folder: Path, content: bytes) -> None:
    (folder / "labels.csv").write_bytes(content)
    assert "is not a CSV file in UTF-8" in refusal(folder)


def test_a_csv_that_is_missing_or_elsewhere_is_refused(folder: Path) -> None:
    assert "labels.csv cannot be read: No such file" in refusal(folder)
    for outside in ("../labels.csv", "/etc/passwd"):
        with pytest.raises(DataRefused, match="not a path below the data folder"):
            data.find(str(folder), DataOptions(labels_csv=outside))
