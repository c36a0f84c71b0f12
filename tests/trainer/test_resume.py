"""A run that was cut anywhere and resumed equals one that was not, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer import recipe
from trainer.device import choose
from trainer.errors import Stopped
from trainer.fit import fit
from trainer.opening import Options

Trainer = Callable[..., tuple[int, str, str]]
# What depends on the clock, or on which run computed what the cache holds.
OF_THE_CLOCK = {"time", "seconds", "images_per_s", "data_wait_fraction", "peak_memory_bytes", "epoch_seconds"}
OF_THE_CACHE = {"activations", "start", "resume"}

EVERY_KIND = """
arch = "digits_net"
size_px = 16
batch_size = 8
lr = 0.05
precision = "fp32"
tta = 2

[[stages]]
name = "activations"
freeze_to = -1
precompute = true
lr = "find"
epochs = 2

[[stages]]
name = "head"
freeze_to = -1
epochs = 2
ema = 0.9
optimizer = "adamw"

[[stages]]
name = "unfrozen"
cycles = 2
spread = 3
lr = "find"
find_batches = 12
until_overfitting = true
snapshots = true
mixup = 0.2
clip = 1.0
accumulate = 2
batch_size = 4
"""


@pytest.fixture
def every_kind(tmp_path: Path) -> Path:
    """A recipe with every kind of step, and all that a step changes."""
    path = tmp_path / "every_kind.toml"
    path.write_text(EVERY_KIND)
    return path


class Cut:
    """Asks the run to stop once it has been asked so many times; counts how often it was asked."""

    def __init__(self, after: int | None = None) -> None:
        self.asked = 0
        self._after = after

    def __call__(self) -> None:
        self.asked += 1
        if self._after is not None and self.asked > self._after:
            raise Stopped(signal.SIGTERM)


def run(path: Path, photos: Path, out: Path, cache: Path, cut: Cut, **options: Any) -> None:
    given = Options(source=str(photos), out=out, device=choose(allow_cpu=True), workers=0, cache=cache, check_stop=cut)
    fit(recipe.load(str(path)), replace(given, **options))


def result(out: Path) -> dict[str, object]:
    """All that a run leaves that doesn't depend on the clock."""
    left: dict[str, object] = {
        path.name: path.read_bytes() for path in (out / "out").iterdir() if path.suffix in {".safetensors", ".csv"}
    }
    summary = json.loads((out / "out" / "summary.json").read_text())
    left["summary"] = {key: value for key, value in summary.items() if key not in OF_THE_CLOCK}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    left["metrics"] = [
        {key: value for key, value in line.items() if key not in OF_THE_CLOCK}
        for line in lines
        if line["event"] not in OF_THE_CACHE
    ]
    return left


def cuts(asked: int) -> Iterator[int]:
    """Every ninth place, or with SOAK=1 every one; the last is within the last pass over the validation part."""
    return iter(range(0, asked, 1 if os.environ.get("SOAK") else 9))


@pytest.mark.timeout(300)
def test_a_run_cut_anywhere_equals_one_that_was_not(every_kind: Path, photos: Path, tmp_path: Path) -> None:
    whole, counted = tmp_path / "whole", Cut()
    run(every_kind, photos, whole, tmp_path / "a", counted)
    expected = result(whole)
    # Places before the first step have no checkpoint yet: such a run starts over.
    for number, place in enumerate(cuts(counted.asked)):
        out, cache = tmp_path / f"cut-{place}", tmp_path / f"cache-{place}"
        with pytest.raises(Stopped):
            run(every_kind, photos, out, cache, Cut(place))
        run(every_kind, photos, out, cache, Cut(), resume=True, workers=(0, 2, 3)[number % 3])
        assert result(out) == expected, f"cut after {place} of {counted.asked}"


@pytest.mark.timeout(300)
def test_a_large_network_cut_anywhere_equals_one_that_was_not(every_kind: Path, photos: Path, tmp_path: Path) -> None:
    """MobileNetV2 with fast.ai's head: BatchNorm, dropout, and more layers than batches."""
    every_kind.write_text(EVERY_KIND.replace("digits_net", "mobilenet_v2").replace("size_px = 16", "size_px = 32"))
    counted = Cut()
    run(every_kind, photos, tmp_path / "whole", tmp_path / "a", counted)
    expected = result(tmp_path / "whole")
    for number, share in enumerate((0.5, 0.7, 0.8, 0.95)):
        out, cache, place = tmp_path / f"cut-{number}", tmp_path / f"cache-{number}", int(share * counted.asked)
        with pytest.raises(Stopped):
            run(every_kind, photos, out, cache, Cut(place))
        run(every_kind, photos, out, cache, Cut(), resume=True, workers=(0, 2, 3)[number % 3])
        assert result(out) == expected, f"cut after {place} of {counted.asked}"


def test_a_run_cut_again_and_again_equals_one_that_was_not(every_kind: Path, photos: Path, tmp_path: Path) -> None:
    run(every_kind, photos, tmp_path / "whole", tmp_path / "a", Cut())
    out = tmp_path / "cut"
    pieces = 0
    while True:
        try:
            run(every_kind, photos, out, tmp_path / "b", Cut(40 + pieces), resume=pieces > 0)
            break
        except Stopped:
            pieces += 1
    assert pieces > 3
    assert result(out) == result(tmp_path / "whole")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_gone_on_from(
    every_kind: Path, photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run(every_kind, photos, tmp_path / "whole", tmp_path / "a", Cut())
    out, cache = tmp_path / "killed", tmp_path / "b"
    command = [sys.executable, "-m", "trainer", "fit", str(every_kind), "--data", str(photos), "--out", str(out)]
    # A checkpoint after every step: nearly all the time one is being written, and many a kill falls into that.
    command += ["--allow-cpu", "--resume", "--checkpoint-every", "0", "--cache", str(cache), "--workers", "2"]
    for checkpoints in (60, 20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        seen = set(written(out))
        while len(seen) <= checkpoints and process.poll() is None:
            seen |= set(written(out))
        process.send_signal(number)
        _, complaints = process.communicate()
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 143), complaints.decode()
    run(every_kind, photos, out, cache, Cut(), resume=True)
    assert result(out) == result(tmp_path / "whole")


def written(out: Path) -> list[int]:
    """When the checkpoint was written, if there is one."""
    try:
        return [(out / "checkpoints" / "last.safetensors").stat().st_mtime_ns]
    except FileNotFoundError:
        return []


def test_what_could_change_the_last_digits_is_announced_and_refused_when_exact(
    every_kind: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    with pytest.raises(Stopped):
        run(every_kind, photos, tmp_path / "run", tmp_path / "a", Cut(150))
    torch.set_num_threads(2)
    with pytest.raises(Exception, match="resumed with threads 2 instead of 1, and --exact"):
        run(every_kind, photos, tmp_path / "run", tmp_path / "a", Cut(), resume=True, exact=True)
    run(every_kind, photos, tmp_path / "run", tmp_path / "a", Cut(), resume=True)
    assert "resumed with threads 2 instead of 1: last digits may differ" in capsys.readouterr().out
