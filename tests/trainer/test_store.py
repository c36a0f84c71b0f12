import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import RunDirRefused
from trainer.store import Shards, default_cache, key


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.at),)


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "deep" / "folder", count=5, per_shard=2)
    assert shards.ranges == [range(0, 2), range(2, 4), range(4, 5)]
    shards.write(2, {"rows": torch.tensor([[1.5, 2.5]])}, {"made": "here"})
    read = Shards(tmp_path / "deep" / "folder", count=5, per_shard=2).read(2)
    assert read is not None
    assert read[0]["rows"].tolist() == [[1.5, 2.5]]
    assert read[1] == {"made": "here"}
    assert shards.read(0) is None
    assert [file.name for file in (tmp_path / "deep" / "folder").iterdir()] == ["00002.safetensors"]


def test_nothing_has_no_shards(tmp_path: Path) -> None:
    assert Shards(tmp_path, count=0, per_shard=2).ranges == []


def test_a_shard_of_another_length_is_none(tmp_path: Path) -> None:
    Shards(tmp_path, count=5, per_shard=2).write(2, {"rows": torch.zeros(1)}, {})
    assert Shards(tmp_path, count=6, per_shard=2).read(2) is None


def header(**tensors: object) -> bytes:
    text = json.dumps({"__metadata__": {"items": "4"}, **tensors}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"\xff" * 100,
        header(rows={"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}),
        header(rows={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]}),
        header(rows={"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}),
        header(rows={"dtype": "object", "shape": [4], "data_offsets": [0, 16]}),
        header(rows={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}),
        header(rows="[" * 10_000),
    ],
)
def test_a_damaged_shard_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "00000.safetensors").write_bytes(content)
    assert Shards(tmp_path, count=4, per_shard=4).read(0) is None


def test_a_shard_cut_short_is_none(tmp_path: Path) -> None:
    shards = Shards(tmp_path, count=4, per_shard=4)
    shards.write(0, {"rows": torch.zeros(4)}, {})
    path = tmp_path / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert shards.read(0) is None


def test_a_shard_without_metadata_is_none(tmp_path: Path) -> None:
    save_file({"rows": torch.zeros(4)}, tmp_path / "00000.safetensors")
    assert Shards(tmp_path, count=4, per_shard=4).read(0) is None


def test_nothing_in_a_pickle_runs(tmp_path: Path) -> None:
    (tmp_path / "00000.safetensors").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    torch.save(Hostile(tmp_path / "ran"), tmp_path / "00001.safetensors")
    shards = Shards(tmp_path, count=2, per_shard=1)
    assert [shards.read(0), shards.read(1)] == [None, None]
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirRefused, match="cannot be written"):
        Shards(tmp_path / "file" / "below", count=1, per_shard=1).write(0, {}, {})


def test_a_key_follows_from_the_values_of_its_parts_alone() -> None:
    assert key(a=1, b=["x", "y"]) == key(b=["x", "y"], a=1)
    keys = [key(a=1, b="x"), key(a=2, b="x"), key(a=1, b="y"), key(a=1, c="x"), key(a="1", b="x"), key(a=1)]
    assert len(set(keys)) == len(keys)
    assert len(keys[0]) == 64


def test_the_cache_lies_where_the_xdg_rules_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "gpuops-trainer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "gpuops-trainer"
