"""The pace: measured once for a machine, remembered, pinned in a run, and never taken from a hostile file."""

import csv
import json
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import checkpoint, models, pace, recipe
from trainer.device import bf16_supported, choose
from trainer.errors import Stopped
from trainer.fit import fit
from trainer.opening import Options
from trainer.pace import Pace
from trainer.stage import Stage

Trainer = Callable[..., tuple[int, str, str]]
Events = Callable[[Path, str], list[dict[str, Any]]]
CPU = torch.device("cpu")

AUTO = """
name = "paced"
arch = "digits_net"
size_px = 16
batch_size = 8

[[stages]]
name = "head"
freeze_to = -1
epochs = 2

[[stages]]
name = "unfrozen"
epochs = 1
lr = 0.001
"""


@pytest.fixture
def auto(tmp_path: Path) -> Path:
    """A recipe that leaves the precision to a measurement."""
    path = tmp_path / "auto.toml"
    path.write_text(AUTO)
    return path


@pytest.fixture
def ran(trainer: Trainer, events: Events, auto: Path, photos: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    """Fits the recipe in a run directory of that name: its `pace` events."""

    def run(name: str, *more: object) -> list[Any]:
        out = tmp_path / name
        code, _, complained = trainer("fit", auto, "--data", photos, "--out", out, "--allow-cpu", *more)
        assert (code, complained) == (0, "")
        return events(out, "pace")

    return run


def files(cache: Path) -> list[Path]:
    return sorted((cache / "pace").iterdir())


def without_speed(chosen: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in chosen.items() if key != "images_per_s"}


def test_each_stages_pace_is_measured_and_the_fastest_is_taken_if_it_is_worth_it(ran: Callable[..., list[Any]]) -> None:
    found = ran("run")
    assert [event["stage"] for event in found] == ["head", "unfrozen"]
    for event in found:
        measured = event["measured"]
        assert len(measured) >= 2
        assert without_speed(measured[0]) == without_speed(asdict(Pace()))  # plain fp32 is measured too
        assert all(each["images_per_s"] > 0 for each in measured)
        fastest = max(measured, key=lambda each: each["images_per_s"])
        worth_it = fastest["images_per_s"] >= pace.WORTHWHILE * measured[0]["images_per_s"]
        assert event["chosen"] == (fastest if worth_it else measured[0])
    assert any(each["folded"] for each in found[0]["measured"])
    assert not any(each["folded"] for each in found[1]["measured"])  # its BatchNorm learns


def test_a_second_run_measures_nothing_and_computes_as_the_first(
    ran: Callable[..., list[Any]], own_cache: Path, tmp_path: Path
) -> None:
    first = ran("first")
    kept = [file.read_bytes() for file in files(own_cache)]
    second = ran("second")
    assert [event["measured"] for event in second] == [[], []]
    assert [event["chosen"] for event in second] == [event["chosen"] for event in first]
    assert [file.read_bytes() for file in files(own_cache)] == kept
    one, other = ((tmp_path / name / "out" / "weights.safetensors").read_bytes() for name in ("first", "second"))
    assert one == other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stated_precision_is_taken_without_a_measurement(
    ran: Callable[..., list[Any]], own_cache: Path, precision: str
) -> None:
    found = ran("run", "--set", f"precision={precision}")
    assert [event["measured"] for event in found] == [[], []]
    assert [event["chosen"] for event in found] == [
        {"precision": precision, "channels_last": True, "folded": folded, "images_per_s": 0.0}
        for folded in (True, False)
    ]
    assert not (own_cache / "pace").exists()


def test_what_is_compared_starts_with_plain_fp32_and_folds_only_what_is_frozen() -> None:
    frozen, free = pace.paces("auto", CPU, frozen=True), pace.paces("auto", CPU, frozen=False)
    assert frozen[0] == free[0] == Pace()
    assert frozen[: len(free)] == free
    assert [each.folded for each in frozen] == [False] * len(free) + [True]
    assert any(each.precision == "bf16" for each in free) == bf16_supported("cpu")
    assert not any(each.precision == "fp16" for each in free)


@pytest.mark.parametrize(
    "changed",
    [
        {"arch": "photo_net"},
        {"size_px": 24},
        {"freeze_to": 0},
    ],
)
def test_another_network_size_or_freezing_is_measured_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    def measured(arch: str = "digits_net", size_px: int = 16, freeze_to: int = -1) -> list[Pace]:
        network = models.build(arch, 2)
        network.freeze_to(freeze_to)
        return pace.choose(network, Stage(size_px=size_px, freeze_to=freeze_to), CPU, tmp_path)[1]

    assert measured()
    assert measured() == []
    assert measured(**changed)


def test_a_measurement_changes_nothing_of_the_network(tmp_path: Path) -> None:
    network = models.build("mobilenet_v2", 2)
    network.freeze_to(0)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    pace.choose(network, Stage(size_px=32), CPU, tmp_path)
    after = network.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in network.module.parameters())
    assert all(tensor.is_contiguous() for tensor in after.values())


def test_a_resumed_run_keeps_its_pace_whatever_the_cache_says(
    auto: Path, photos: Path, events: Events, tmp_path: Path
) -> None:
    out, cache = tmp_path / "run", tmp_path / "a"
    asked = iter(range(1000))

    def stop() -> None:
        if next(asked) == 2 * 32 + 4:  # twice for each of the images, then in the second epoch of the head
            raise Stopped(signal.SIGTERM)

    options = Options(source=str(photos), out=out, device=choose(allow_cpu=True), workers=0, cache=cache)
    with pytest.raises(Stopped):
        fit(recipe.load(str(auto)), replace(options, check_stop=stop))
    [first] = events(out, "pace")
    [file] = files(cache)
    # As if a later measurement had found another one to be the fastest.
    other = without_speed(first["chosen"]) | {"folded": not first["chosen"]["folded"], "channels_last": True}
    file.write_text(json.dumps(asdict(Pace(**other))))
    fit(recipe.load(str(auto)), replace(options, resume=True))
    assert [event["stage"] for event in events(out, "pace")] == ["head", "unfrozen"]
    assert events(out, "pace")[0] == first
    paces = checkpoint.read(out / "checkpoints" / "last.safetensors").values["state"]["paces"]
    assert paces["0"] == first["chosen"]


def test_a_run_on_auto_cut_after_its_last_decision_equals_one_that_was_not(
    auto: Path, photos: Path, events: Events, tmp_path: Path
) -> None:
    cache, whole, cut = tmp_path / "a", tmp_path / "whole", tmp_path / "cut"
    options = Options(source=str(photos), out=whole, device=choose(allow_cpu=True), workers=0, cache=cache)
    fit(recipe.load(str(auto)), options)
    asked = iter(range(1000))

    def stop() -> None:
        # Once for each image, which is decoded; five times in each epoch of the head; then after two steps.
        if next(asked) == 32 + 2 * 5 + 1:
            raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        fit(recipe.load(str(auto)), replace(options, out=cut, check_stop=stop))
    state = checkpoint.read(cut / "checkpoints" / "last.safetensors").values["state"]
    assert (state["step"], state["batch"], sorted(state["paces"])) == (1, 2, ["0", "1"])
    for file in files(cache):
        file.unlink()
    fit(recipe.load(str(auto)), replace(options, out=cut, resume=True))
    assert files(cache) == []
    assert [event["chosen"] for event in events(cut, "pace")] == [event["chosen"] for event in events(whole, "pace")]
    one, other = ((out / "out" / "weights.safetensors").read_bytes() for out in (whole, cut))
    assert one == other


@pytest.mark.skipif(not bf16_supported("cpu"), reason="this CPU has no bfloat16 arithmetic")
def test_bf16_trains_on_this_cpu_and_its_final_scores_are_fp32s(
    ran: Callable[..., list[Any]], trainer: Trainer, events: Events, photos: Path, tmp_path: Path
) -> None:
    ran("bf16", "--set", "precision=bf16", "stages.0.epochs=4")
    epochs = events(tmp_path / "bf16", "epoch")
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    [end] = events(tmp_path / "bf16", "end")
    assert end["accuracy"] == 1.0
    # What comes home is fp32, and gives elsewhere what the run reported.
    code, table, _ = trainer("predict", tmp_path / "bf16", photos / "valid")
    assert code == 0
    reported = (tmp_path / "bf16" / "out" / "predictions.csv").read_text()
    told, said = (
        {Path(row["image"]).name: float(row["probability"]) for row in csv.DictReader(text.splitlines())}
        for text in (reported, table)
    )
    assert len(told) == 8
    assert said == pytest.approx(told, abs=1e-6)
    ran("fp32", "--set", "precision=fp32", "stages.0.epochs=4")
    assert [epoch["train_loss"] for epoch in events(tmp_path / "fp32", "epoch")] != [
        epoch["train_loss"] for epoch in epochs
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04cos\nsystem\n.",
        b"\xff\xfe\x00",
        b"[]",
        b'"bf16"',
        b"{}x",
        b'{"precision": "int4", "channels_last": true}',
        b'{"precision": ["bf16"], "channels_last": true}',
        b'{"precision": "fp32", "channels_last": 3}',
        b'{"precision": "fp64"}',
        b'{"precision": "bf16", "channels_last": true, "folded": false, "run": "me"}',
        b'{"precision": "fp32", "channels_last": true, "folded": false, "images_per_s": NaN}',
        b'{"precision": "fp32", "channels_last": true, "folded": false, "images_per_s": 1e999}',
        b'{"precision": "fp32", "channels_last": true, "folded": false, "images_per_s": "fast"}',
        b'{"precision": "fp32", "channels_last": true, "folded": false, "images_per_s": {"a": [1]}}',
        b"[" * 100_000,
    ],
    ids=lambda content: content[:72].decode("latin-1").encode("unicode_escape").decode(),
)
def test_a_hostile_or_damaged_file_is_measured_anew(
    ran: Callable[..., list[Any]], own_cache: Path, content: bytes
) -> None:
    ran("first", "--set", "stages.0.epochs=1")
    names = [file.name for file in files(own_cache)]
    for file in files(own_cache):
        file.write_bytes(content)
    found = ran("second", "--set", "stages.0.epochs=1")
    assert all(len(event["measured"]) >= 2 for event in found)
    assert all(event["chosen"] in event["measured"] for event in found)
    assert [file.name for file in files(own_cache)] == names
    for file in files(own_cache):
        assert Pace(**json.loads(file.read_text())).images_per_s > 0


def test_a_pace_that_this_stage_would_not_compare_is_measured_anew(tmp_path: Path) -> None:
    network = models.build("digits_net", 2)
    network.freeze_to(0)
    stage = Stage(size_px=16)
    pace.choose(network, stage, CPU, tmp_path)
    [file] = files(tmp_path)
    file.write_text(json.dumps(asdict(Pace(channels_last=True, folded=True, images_per_s=9.0))))  # BatchNorm learns
    assert pace.choose(network, stage, CPU, tmp_path)[1]
