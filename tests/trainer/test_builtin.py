"""Built-in sets as they lie on the disk after a download: small ones are written here, so nothing is downloaded."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from trainer import data
from trainer.data import cifar
from trainer.errors import DataRefused
from trainer.recipe import DataOptions


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpuops-trainer" / "datasets"


def write_idx(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """The format of the MNIST family: 0, 0, type 8 (bytes), dimensions, each size as four bytes, the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


@pytest.fixture
def fashion(datasets: Path) -> Path:
    raw = datasets / "fashion_mnist" / "FashionMNIST" / "raw"
    for prefix, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", np.tile(labels[:, None, None], (1, 28, 28)))
    return raw


def test_a_published_test_part_is_the_test_part(fashion: Path) -> None:
    found = data.find("fashion_mnist", DataOptions(valid_fraction=0.25))
    assert [len(part) for part in found.parts.values()] == [30, 10, 20]
    assert found.classes[:2] == ("T-shirt/top", "Trouser")
    image = found.test[3].read()
    assert (image.shape, int(image.max()), found.test[3].labels) == ((3, 28, 28), 3, (3,))
    assert found.test[3].digest() == found.test[13].digest() != found.test[4].digest()


def test_a_set_with_a_test_part_takes_no_test_fraction(fashion: Path) -> None:
    with pytest.raises(DataRefused, match="a test part of its own"):
        data.find("fashion_mnist", DataOptions(test_fraction=0.1))


def test_a_pickled_copy_of_an_old_torchvision_is_refused(fashion: Path) -> None:
    (fashion.parent / "processed").mkdir()
    with pytest.raises(DataRefused, match="an old torchvision"):
        data.find("fashion_mnist", DataOptions())


def test_a_built_in_set_takes_no_labels() -> None:
    with pytest.raises(DataRefused, match="labels of its own"):
        data.find("digits", DataOptions(labels_csv="labels.csv"))


def test_imagenettes_val_folder_is_its_validation_part_and_its_classes_have_names(photos: Path, datasets: Path) -> None:
    for part, folder in (("train", "train"), ("valid", "val")):
        for name, number in (("cats", "n01440764"), ("dogs", "n02102040")):
            shutil.copytree(photos / part / name, datasets / "imagenette" / "imagenette2-320" / folder / number)
            # torchvision counts files of this ending alone.
            (datasets / "imagenette" / "imagenette2-320" / folder / number / "more.JPEG").touch()
    found = data.find("imagenette", DataOptions())
    assert (found.classes, len(found.train), len(found.valid)) == (("tench", "English springer"), 26, 10)


def test_eurosat_is_split(photos: Path, datasets: Path) -> None:
    shutil.copytree(photos / "train", datasets / "eurosat" / "eurosat" / "2750")
    assert [len(part) for part in data.find("eurosat", DataOptions(valid_fraction=0.5)).parts.values()] == [12, 12]


def test_cifar_is_read_from_its_binary_records(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

        # The coarse label, the fine label, then all of red, all of green, all of blue.
        add("train.bin", b"".join(bytes([9, fine]) + bytes([1] * 1024 + [2] * 1024 + [3] * 1024) for fine in (5, 6)))
        add("fine_label_names.txt", b"apple\naquarium_fish\n")
    images, labels = cifar.images("cifar100", path, "train")
    assert (tuple(images.shape), labels) == ((2, 3, 32, 32), [5, 6])
    assert images[1, :, 31, 31].tolist() == [1, 2, 3]
    assert cifar.classes("cifar100", path) == ("apple", "aquarium_fish")
