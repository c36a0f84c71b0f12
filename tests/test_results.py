"""Whether what came home is whole, and what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuops import results
from gpuops.errors import ResultsDamaged

_FILES = {"log.txt": b"said", "out/summary.json": b"{}", 'out/été "1".csv': b"a,b\n", "empty": b""}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, whole."""
    folder = tmp_path / "20261123T095959-0a1b2c"
    for name, content in _FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    _seal(folder, *(_entry(name, content) for name, content in _FILES.items()))
    return folder


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _seal(folder: Path, *entries: object) -> None:
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))


def test_a_whole_run_gives_the_number_of_its_files(run: Path) -> None:
    assert results.verify(run) == len(_FILES)


def test_what_the_manifest_does_not_name_does_not_matter(run: Path) -> None:
    (run / "home.json").write_text("{}")
    (run / "notes").write_text("mine")
    assert results.verify(run) == len(_FILES)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _to_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_flip, _cut_short, Path.unlink, _to_a_folder])
@pytest.mark.parametrize("name", ["log.txt", 'out/été "1".csv'])
def test_a_damaged_file_is_named_with_the_way_to_mend_it(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / name)
    with pytest.raises(ResultsDamaged) as refused:
        results.verify(run)
    assert refused.value.what == f"1 file of {run.name} did not come home whole: {name}."
    assert refused.value.next_step == f"gpuops pull {run.name}"


def test_of_many_damaged_files_a_few_are_named_and_all_are_counted(run: Path) -> None:
    _seal(run, *(_entry(f"gone-{number}", b"") for number in range(40)))
    with pytest.raises(ResultsDamaged, match=r"40 files .*gone-0, .*gone-4 and 35 more\."):
        results.verify(run)


@pytest.mark.parametrize("manifest", [None, b"", b"{", b"\xff", b"[]", b"{}", b'{"files": [1]}', b'{"files": [{}]}'])
def test_a_manifest_that_is_not_one_is_damage(run: Path, manifest: bytes | None) -> None:
    if manifest is None:
        (run / "manifest.json").unlink()
    else:
        (run / "manifest.json").write_bytes(manifest)
    with pytest.raises(ResultsDamaged, match=r"manifest\.json"):
        results.verify(run)


@pytest.mark.parametrize("path", ["../secret", "out/../../secret", "link", "links/secret", "{outside}/secret"])
def test_a_manifest_makes_nobody_read_outside_the_run(run: Path, path: str) -> None:
    """It comes from a machine. That a file elsewhere has a certain hash is not for it to find out."""
    secret = run.parent / "secret"
    secret.write_bytes(b"secret")
    (run / "link").symlink_to(secret)
    (run / "links").symlink_to(run.parent, target_is_directory=True)
    path = path.format(outside=run.parent)
    _seal(run, _entry(path, b"secret"))
    with pytest.raises(ResultsDamaged):
        results.verify(run)


def test_the_outcome_is_what_the_files_say(run: Path) -> None:
    (run / "state.json").write_text('{"state": "failed", "exit_code": 23, "reason": "exit code 23"}')
    (run / "out" / "summary.json").write_text('{"accuracy": 0.98, "seconds": 12.5, "other": 1}')
    outcome = results.outcome(run)
    assert (outcome.state, outcome.exit_code, outcome.reason) == ("failed", 23, "exit code 23")
    assert (outcome.accuracy, outcome.seconds) == (0.98, 12.5)


def test_the_outcome_of_a_run_without_files_is_unknown(tmp_path: Path) -> None:
    outcome = results.outcome(tmp_path)
    assert (outcome.state, outcome.exit_code, outcome.accuracy) == ("unknown", None, None)


@pytest.mark.parametrize("text", ["{", "[]", '{"state": 3, "exit_code": "x", "reason": null}'])
def test_damaged_files_say_nothing_and_break_nothing(run: Path, text: str) -> None:
    (run / "state.json").write_text(text)
    (run / "out" / "summary.json").write_text('{"accuracy": "high"}')
    outcome = results.outcome(run)
    assert (outcome.exit_code, outcome.accuracy) == (None, None)


def test_the_log_is_never_written_through_a_link(run: Path) -> None:
    precious = run.parent / "bashrc"
    precious.write_text("as it was")
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to(precious)
    with pytest.raises(OSError):
        results.open_log(run)
    assert precious.read_text() == "as it was"
