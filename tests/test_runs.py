"""The runs of a computer: their ids, how they are found, and what their files say."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gpuops import runs
from gpuops.errors import BadData, NewerFormat, UnknownRun
from gpuops.runs import Run, RunStore, new_id

_NOW = datetime(2026, 11, 23, 9, 59, 59, tzinfo=timezone.utc)
_RUN = Run(
    id="20261123T095959-0a1b2c",
    machine="fast-ai",
    machine_id="i-1",
    provider="aws",
    region="us-west-2",
    recipe="digits",
    python="/opt/pytorch/bin/python",
    argv=("python", "-m", "trainer", "fit", "-"),
    trainer_digest="1",
    recipe_digest="2",
    data_digest="",
    price_usd_per_hour=0.9,
    then="stop",
    grace_minutes=10.0,
    poweroff=("sudo", "poweroff"),
    created=_NOW.isoformat(),
    type="p2.xlarge",
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def _add(store: RunStore, *ids: str) -> None:
    for run_id in ids:
        store.add(replace(_RUN, id=run_id))


def test_ids_sort_by_age_and_are_never_the_same() -> None:
    times = [_NOW + timedelta(seconds=s) for s in (0, 1, 60, 3600, 86_400, 40 * 86_400)]
    ids = [new_id(time) for time in times]
    assert ids == sorted(ids)
    assert len({new_id(_NOW) for _ in range(200)}) == 200


def test_a_run_reads_back_as_it_was_written(store: RunStore) -> None:
    store.add(_RUN)
    assert runs.read(store.path(_RUN.id)) == _RUN
    assert store.find(_RUN.id) == _RUN


def test_a_run_of_a_newer_gpuops_is_refused_and_an_upgrade_is_asked_for(store: RunStore) -> None:
    store.add(_RUN)
    path = store.path(_RUN.id) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "a_new_field": 1}))
    with pytest.raises(NewerFormat, match="newer gpuops") as refused:
        store.find(_RUN.id)
    assert "Upgrade" in refused.value.next_step


def test_a_run_that_was_written_without_its_machines_type_is_read(store: RunStore) -> None:
    store.add(_RUN)
    path = store.path(_RUN.id) / "run.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in written.items() if key != "type"}))
    assert store.find(_RUN.id) == replace(_RUN, type="")


def test_a_price_that_is_none_is_damage() -> None:
    written = {**json.loads(_RUN.json()), "price_usd_per_hour": "a lot"}
    with pytest.raises(BadData, match="'a lot' is no amount of USD"):
        runs.from_json(json.dumps(written).encode(), where="the machine")


def test_a_unique_beginning_of_an_id_will_do(store: RunStore) -> None:
    _add(store, "20261101T000000-aaaaaa", "20261102T000000-bbbbbb", "20261102T000000-cccccc")
    assert store.find("20261101").id == "20261101T000000-aaaaaa"
    assert store.find("20261102T000000-b").id == "20261102T000000-bbbbbb"


def test_a_beginning_of_several_ids_is_refused_and_they_are_named(store: RunStore) -> None:
    _add(store, "20261102T000000-bbbbbb", "20261102T000000-cccccc")
    with pytest.raises(UnknownRun) as refused:
        store.find("20261102")
    assert refused.value.next_step == "Several begin so: 20261102T000000-bbbbbb, 20261102T000000-cccccc."


def test_an_unknown_run_names_the_closest(store: RunStore) -> None:
    _add(store, "20261101T000000-aaaaaa", "20251231T235959-ffffff")
    with pytest.raises(UnknownRun, match="Did you mean '20261101T000000-aaaaaa'"):
        store.find("20261101T000000-aaaaab")


def test_without_an_id_the_newest_run_is_meant(store: RunStore) -> None:
    _add(store, "20261102T000000-bbbbbb", "20261101T000000-aaaaaa")
    assert store.find(None).id == "20261102T000000-bbbbbb"


def test_without_any_run_the_way_to_the_first_one_is_named(store: RunStore) -> None:
    assert store.all() == []
    with pytest.raises(UnknownRun) as refused:
        store.find(None)
    assert "gpuops train" in refused.value.next_step


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff", b'{"format": "?"}', b'{"format": 1, "id": "x"}'])
def test_a_damaged_run_is_told_as_such_and_hides_no_other(store: RunStore, damage: bytes) -> None:
    _add(store, "20261101T000000-aaaaaa", _RUN.id)
    (store.path("20261101T000000-aaaaaa") / "run.json").write_bytes(damage)
    assert store.all() == [_RUN]
    assert store.damaged() == [store.path("20261101T000000-aaaaaa")]
    with pytest.raises(BadData, match="damaged"):
        runs.read(store.path("20261101T000000-aaaaaa"))


@pytest.mark.parametrize("run_id", ["../20261101T000000-aaaaaa", "/etc", "", "20261101T000000-aaaaaa/..", "run"])
def test_nothing_but_an_id_names_a_run(run_id: str) -> None:
    """It becomes a folder's name, and may come from a machine."""
    with pytest.raises(BadData):
        runs.from_json(replace(_RUN, id=run_id).json(), where="the machine")


def test_what_is_no_run_is_passed_over(store: RunStore) -> None:
    _add(store, _RUN.id)
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / "a-folder").mkdir()
    assert store.all() == [_RUN]


def test_a_run_is_home_only_once_that_has_been_marked(store: RunStore) -> None:
    store.add(_RUN)
    assert not store.is_home(_RUN.id)
    store.mark_home(_RUN.id, files=3, now=_NOW)
    assert store.is_home(_RUN.id)
    assert json.loads((store.path(_RUN.id) / "home.json").read_text())["verified_files"] == 3
