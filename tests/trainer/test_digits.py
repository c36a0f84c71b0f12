"""The shipped recipe on real digits: how good, and exactly the same when it was killed on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

import trainer
from trainer import data, recipe
from trainer.__main__ import main


def test_digits_are_read_with_98_percent_and_better_than_logistic_regression(tmp_path: Path) -> None:
    assert main(["fit", "digits", "--out", str(tmp_path), "--allow-cpu"]) == 0
    accuracy = json.loads((tmp_path / "out" / "summary.json").read_text())["accuracy"]
    assert accuracy >= 0.98
    assert accuracy > logistic_regression_accuracy()


def logistic_regression_accuracy() -> float:
    """On the same split, on the 64 shades of a digit."""
    samples = data.find("digits", recipe.load("digits").data)
    parts = []
    for part in (samples.train, samples.valid):
        shades = torch.stack([sample.read()[0].flatten() for sample in part]).numpy() / 255
        parts.append((shades, [sample.labels[0] for sample in part]))
    return float(LogisticRegression(max_iter=1000).fit(*parts[0]).score(*parts[1]))


def test_the_package_alone_is_stopped_by_a_signal_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    shutil.copytree(Path(trainer.__file__).parent, tmp_path / "machine" / "trainer")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = ["fit", "digits", "--allow-cpu", "--set", "epochs=4", "--out"]
    command = [sys.executable, "-m", "trainer", *arguments, str(stopped)]
    with subprocess.Popen(
        command, cwd=tmp_path / "machine", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        for line in process.stdout:
            if "epoch  1/" in line:
                process.send_signal(signal.SIGTERM)
                break
        complained = process.communicate()[1]
    assert process.returncode == 143
    assert complained.startswith("error: Stopped by signal 15")
    assert main([*arguments, str(stopped), "--resume"]) == 0
    assert main([*arguments, str(whole)]) == 0
    weights = [(run / "out" / "weights.safetensors").read_bytes() for run in (stopped, whole)]
    assert weights[0] == weights[1]


def test_a_machine_without_a_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "fit", "digits", "--out", str(tmp_path / "run")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    refused = subprocess.run(
        command, cwd=Path(trainer.__file__).parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (23, "")
    assert "--allow-cpu" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
