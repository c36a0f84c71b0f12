"""Small real inputs for the trainer: photographs painted by Pillow, a recipe of a second, a CPU to run them on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main

COLOURS = {"cats": (200, 120, 40), "dogs": (40, 90, 200), "owls": (60, 180, 60)}


def paint(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (24, 20)) -> None:
    """A noisy image of one colour: real pixels that a small network can learn in a second."""
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with train/ and valid/, twelve and four images of each of two classes."""
    root = tmp_path / "photos"
    for part, count in (("train", 12), ("valid", 4)):
        for name in ("cats", "dogs"):
            for index in range(count):
                paint(
                    root / part / name / f"{name}.{index}.png",
                    COLOURS[name],
                    seed=index + (1000 if part == "valid" else 0),
                )
    return root


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    """Two stages of two epochs with our small network at 16 pixels: the head alone, then all of it."""
    path = tmp_path / "small.toml"
    path.write_text(
        """
        arch = "digits_net"
        size_px = 16
        batch_size = 8
        lr = 0.05
        precision = "fp32"

        [[stages]]
        name = "head"
        freeze_to = -1
        epochs = 2

        [[stages]]
        name = "unfrozen"
        cycles = 2
        cycle_len = 1
        spread = 3
        """
    )
    return path


@pytest.fixture(autouse=True)
def one_cpu_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests hold what a CPU gives bit for bit, on machines with a GPU too, and on busy cores.

    One thread, also in the processes they start: two that wait for each other by spinning take much longer where
    others want the cores.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own: where a run without --cache keeps images and activations."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpuops-trainer"


@pytest.fixture
def trainer(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: its exit code, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def events() -> Callable[[Path, str], list[dict[str, Any]]]:
    """Reads a run's metrics.jsonl: the events of one kind."""

    def read(run_dir: Path, event: str) -> list[dict[str, Any]]:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return [values for line in lines if (values := json.loads(line))["event"] == event]

    return read
