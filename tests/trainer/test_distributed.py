"""Two processes that train one network give the metrics that one process gives."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Events = Callable[[Path, str], list[dict[str, Any]]]

# No dropout and frozen BatchNorm: what the two do differs from what one does in the order of additions alone.
HEAD = """
arch = "resnet18"
head = "linear"
size_px = 32
batch_size = 8
precision = "fp32"
tta = 2
metrics = ["f1", "auc", "log_loss"]
freeze_to = -1

[[stages]]
name = "activations"
precompute = true
lr = "find"
cycles = 2
until_overfitting = true

[[stages]]
name = "head"
lr = 0.05
epochs = 2
"""


def start(recipe: Path, photos: Path, out: Path, rank: int, size: int, port: int, *more: str) -> subprocess.Popen[str]:
    """One process of a team, as torchrun starts it."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "trainer", "fit", str(recipe), "--data", str(photos), "--out", str(out)]
    command += ["--allow-cpu", "--workers", "0", *more]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def team(recipe: Path, photos: Path, out: Path, size: int, *more: str) -> list[tuple[int, str, str]]:
    """Run it to its end: each process's exit code, output and complaints."""
    port = free_port()
    started = [start(recipe, photos, out, rank, size, port, *more) for rank in range(size)]
    ended = [process.communicate(timeout=250) for process in started]
    return [(process.returncode, *words) for process, words in zip(started, ended, strict=True)]


@pytest.fixture
def head(tmp_path: Path) -> Path:
    path = tmp_path / "head.toml"
    path.write_text(HEAD)
    return path


@pytest.mark.timeout(300)
def test_two_processes_give_the_metrics_of_one(head: Path, photos: Path, tmp_path: Path, events: Events) -> None:
    # 23 and 7 images: neither part can be shared out evenly.
    (photos / "train" / "cats" / "cats.0.png").unlink()
    (photos / "valid" / "dogs" / "dogs.0.png").unlink()
    [(code, alone_said, complained)] = team(head, photos, tmp_path / "one", 1, "--cache", str(tmp_path / "a"))
    assert (code, complained) == (0, "")
    both = team(head, photos, tmp_path / "two", 2, "--cache", str(tmp_path / "b"))
    assert [code for code, _, _ in both] == [0, 0], both[0][2] + both[1][2]
    assert both[1][1] == ""  # one of them speaks
    assert len(both[0][1].splitlines()) == len(alone_said.splitlines())

    summaries = [json.loads((tmp_path / name / "out" / "summary.json").read_text()) for name in ("one", "two")]
    for way, scores in summaries[0]["scores"]["valid"].items():
        assert summaries[1]["scores"]["valid"][way] == pytest.approx(scores, abs=1e-5)
    assert summaries[1]["accuracy"] == summaries[0]["accuracy"]
    epochs = [events(tmp_path / name, "epoch") for name in ("one", "two")]
    assert len(epochs[0]) == len(epochs[1]) == 4
    for one, two in zip(*epochs, strict=True):
        assert two["accuracy"] == one["accuracy"]
        for key in ("valid_loss", "train_loss", "lr"):
            assert two[key] == pytest.approx(one[key], rel=1e-3), key
    weights = [load_file(tmp_path / name / "out" / "weights.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        assert (weights[1][name] - tensor).abs().max() < 1e-3, name


@pytest.mark.timeout(300)
def test_a_team_asked_to_stop_goes_on_where_it_was(head: Path, photos: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert [code for code, _, _ in team(head, photos, whole, 2)] == [0, 0]
    port = free_port()
    started = [start(head, photos, cut, rank, 2, port, "--set", "stages.1.epochs=2") for rank in range(2)]
    assert started[0].stdout is not None
    for line in started[0].stdout:
        if "epoch  1/2" in line:
            break
    started[1].send_signal(signal.SIGTERM)  # one of them: the other stops at the same step
    for process in started:
        process.communicate(timeout=250)
    assert [process.returncode for process in started] == [143, 143]
    assert [code for code, _, _ in team(head, photos, cut, 2, "--resume")] == [0, 0]
    assert (cut / "out" / "weights.safetensors").read_bytes() == (whole / "out" / "weights.safetensors").read_bytes()
