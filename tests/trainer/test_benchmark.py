import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Trainer = Callable[..., tuple[int, str, str]]
Benchmark = Callable[..., dict[str, Any]]

NUMBERS = ("loader_images_per_s", "step_images_per_s", "together_images_per_s")


@pytest.fixture
def benchmark(trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path) -> Benchmark:
    """Measures a stage of the small recipe in three steps: what --json leaves."""

    def run(*more: object) -> dict[str, Any]:
        file = tmp_path / "speed.json"
        argv = ("benchmark", small_recipe, "--data", photos, "--allow-cpu", "--steps", 3, "--json", file, *more)
        code, said, complained = trainer(*argv)
        assert (code, complained) == (0, "")
        values: dict[str, Any] = json.loads(file.read_text())
        for speed in values["speeds"]:
            assert all(speed[number] > 0 for number in NUMBERS)
            assert 0 <= speed["data_wait_fraction"] <= 1
            assert f"step only {speed['step_images_per_s']:,.0f} img/s" in said
        assert f"peak memory  {values['peak_memory_bytes'] / 2**20:,.0f} MiB" in said
        return values

    return run


def test_a_stage_is_measured_loader_and_step_and_together_at_its_pace(benchmark: Benchmark) -> None:
    found = benchmark("--stage", 1)
    assert (found["stage"], found["arch"], found["size_px"], found["batch_size"]) == ("unfrozen", "digits_net", 16, 8)
    [speed] = found["speeds"]
    assert (speed["work"], speed["pace"], speed["steps"]) == ("training", "fp32, channels_last", 3)
    assert found["peak_memory_bytes"] > 1_000_000
    assert set(found["versions"]) == {"trainer", "python", "torch", "torchvision"}


def test_a_stage_that_precomputes_is_measured_at_that_and_at_training_on_it(benchmark: Benchmark) -> None:
    found = benchmark("--set", "stages.0.precompute=true")
    assert [speed["work"] for speed in found["speeds"]] == ["activations", "training"]


def test_nothing_is_left_but_the_cache_which_a_run_then_uses(
    benchmark: Benchmark, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = {path.name for path in tmp_path.iterdir()}
    benchmark("--set", "precision=auto")
    assert {path.name for path in tmp_path.iterdir()} - before == {"cache", "speed.json"}
    assert not list((tmp_path / "temporary").iterdir())
    assert {path.name for path in own_cache.iterdir()} == {"pixels", "pace"}


@pytest.mark.parametrize("options", [("lr=find",), ("mixup=0.2", "ema=0.9", "clip=1", "accumulate=2", "batch_size=4")])
def test_whatever_a_stage_asks_for_can_be_measured(benchmark: Benchmark, options: tuple[str, ...]) -> None:
    assert benchmark("--stage", 1, "--set", *options)["speeds"][0]["steps"] == 3


def test_a_stage_that_does_not_exist_is_refused(trainer: Trainer, photos: Path, small_recipe: Path) -> None:
    code, _, complained = trainer("benchmark", small_recipe, "--data", photos, "--allow-cpu", "--stage", 2)
    assert code == 20
    assert "has no stage 2. Give --stage 0 to 1" in complained


def test_no_steps_are_refused(trainer: Trainer, small_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        trainer("benchmark", small_recipe, "--steps", 0)
    assert "0 is too few" in capsys.readouterr().err
