"""Images/s of activations and of a training step on this computer's CPU, each switch added in turn to plain fp32.

    python benchmarks/trainer_speed.py [--data DIR] [--weights FILE] [--rounds 5] [--steps 3]

MobileNetV2 from ImageNet weights on photographs at 224 px, in batches of 32 that lie in memory: no loader takes part
(`python -m trainer benchmark` has it). Activations are the forward pass of what is frozen while only the head learns;
a training step is all layers' forward and backward pass and SGD. The network, the paces and the step are the trainer's;
torch.compile is not one of its paces, and is measured to know whether it should be. The lines take turns, a few steps
each, so that whatever else the computer is doing meets all of them; a ratio is a median over rounds of the line's
images/s beside those of plain fp32 in the same round.

Prints tables, and writes trainer_speed.json beside this script, with hardware, versions and load.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchvision
from computer import hardware
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from trainer import losses, models, pace, transforms, weights
from trainer.decode import decode
from trainer.device import bf16_supported
from trainer.distributed import Team
from trainer.models import Network
from trainer.pace import Pace
from trainer.recipe import IMAGENET_MEAN, IMAGENET_STD
from trainer.stage import Stage
from trainer.trainee import Trainee

_HERE = Path(__file__).resolve().parent
_SHARED = _HERE.parents[1] / "shared"
_CPU = torch.device("cpu")
_SIZE_PX = 224
_BATCH = 32
_WARM_UP_STEPS = 2
_EPOCH_IMAGES = 2000  # what "epochs" below are counted in
_STAGE = Stage(name="all layers", size_px=_SIZE_PX, batch_size=_BATCH, lr=1e-4)

Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure activations and training steps, switch by switch.")
    parser.add_argument("--data", type=Path, default=_SHARED / "data" / "dogscats", metavar="DIR")
    file = _SHARED / "weights" / "mobilenet_v2-imagenet.safetensors"
    parser.add_argument("--weights", type=Path, default=file, metavar="FILE", help="of MobileNetV2's body")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="of each line in a round; default: 3")
    options = parser.parse_args()
    for needed in (options.data, options.weights):
        if not needed.exists():
            print(f"skipped: there is no {needed}")
            return

    images, targets = _photographs(options.data)
    network = models.build("mobilenet_v2", 2)
    weights.load_pretrained(network, str(options.weights))
    load_before = os.getloadavg()[0]
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if not compiler:
        print("torch.compile is skipped: there is no C++ compiler here")
    found = {}
    with tempfile.TemporaryDirectory(prefix="trainer-speed.") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # else a second run would find the first one's kernels
        for work, make in (("activations", _activations), ("training step", _training)):
            lines = make(network, images, targets, compiles=compiler is not None)
            found[work] = _by_turns(work, lines, options.rounds, options.steps)
    report = {
        "what": f"images/s of MobileNetV2 at {_SIZE_PX} px, batches of {_BATCH} from memory: medians over rounds, by "
        "turns; ratio: the median over rounds of images/s beside plain fp32's in the same round, and their range; "
        "first_s: seconds of the first step, which compiles; pays_after_steps: the steps after which torch.compile has "
        "made up for that beside the same line without it, null where it never does",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": {**hardware(), "threads": torch.get_num_threads(), "load_before": round(load_before, 1)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "compiler": compiler,
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "lines": found,
    }
    _show(report)
    (_HERE / "trainer_speed.json").write_text(json.dumps(report, indent=1) + "\n")


def _photographs(data: Path) -> tuple[Tensor, Tensor]:
    """One batch of normalised photographs, half of each class, and their labels."""
    folders = sorted(folder for folder in (data / "train").iterdir() if folder.is_dir())[:2]
    files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())[: _BATCH // 2]]
    images = torch.stack([transforms.validation(decode(file), _SIZE_PX) for file, _ in files])
    return transforms.normalised(images, IMAGENET_MEAN, IMAGENET_STD), torch.tensor([label for _, label in files])


def _paces() -> dict[str, Pace]:
    named = {"plain fp32": Pace(), "+ channels_last": Pace(channels_last=True)}
    if bf16_supported("cpu"):
        named["+ bf16"] = Pace(precision="bf16", channels_last=True)
    else:
        print("bf16 is skipped: this processor has no arithmetic for it")
    return named


def _activations(network: Network, images: Tensor, targets: Tensor, compiles: bool) -> dict[str, Step]:
    named = _paces()
    fastest = list(named.values())[-1]
    named["+ BatchNorm folded"] = Pace(precision=fastest.precision, channels_last=True, folded=True)

    def step(chosen: Pace, compiled: bool) -> Step:
        own = copy.deepcopy(network)
        own.module.eval()
        body = pace.body(own, chosen)
        forward = torch.compile(body) if compiled else body
        ready = chosen.laid_out(images)

        def run() -> None:
            with torch.no_grad(), chosen.on(_CPU):
                forward(ready)

        return run

    lines = {name: step(chosen, compiled=False) for name, chosen in named.items()}
    if compiles:
        lines["+ torch.compile"] = step(named["+ BatchNorm folded"], compiled=True)
    return lines


def _training(network: Network, images: Tensor, targets: Tensor, compiles: bool) -> dict[str, Step]:
    named = _paces()

    def step(chosen: Pace, compiled: bool) -> Step:
        own = copy.deepcopy(network)
        own.freeze_to(0)
        chosen.lay_out(own.module)
        trainee = Trainee(own, _STAGE, 1e-4, chosen, Team(device=_CPU))
        forward = torch.compile(own.module) if compiled else own.module
        loss = losses.training_loss(_STAGE, targets, 2, _CPU)
        ready = chosen.laid_out(images)
        own.train()

        def run() -> None:
            with chosen.on(_CPU):
                scores = forward(ready)
            trainee.learn(loss(scores.float(), targets), share=1)
            trainee.step(1)

        return run

    lines = {name: step(chosen, compiled=False) for name, chosen in named.items()}
    if compiles:
        lines["+ torch.compile"] = step(list(named.values())[-1], compiled=True)
    return lines


def _by_turns(work: str, lines: Mapping[str, Step], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    first_s = {}
    for name, step in lines.items():
        print(f"{work}: warming up {name}", file=sys.stderr, flush=True)
        first_s[name] = _seconds(step, 1)
        _seconds(step, _WARM_UP_STEPS)
    per_s: dict[str, list[float]] = {name: [] for name in lines}
    for number in range(rounds):
        print(f"{work}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, step in lines.items():
            per_s[name].append(_BATCH * steps / _seconds(step, steps))
    plain, *_ = per_s.values()
    found = {}
    for name, every in per_s.items():
        ratios = [one / other for one, other in zip(every, plain, strict=True)]
        found[name] = {
            "images_per_s": round(statistics.median(every), 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "rounds_images_per_s": [round(one, 1) for one in every],
        }
    if "+ torch.compile" in found:
        before, compiled = list(found)[-2:]
        found[compiled] |= {
            "first_s": round(first_s[compiled], 1),
            **_pays(found[before], found[compiled], first_s[compiled]),
        }
    return found


def _pays(before: Mapping[str, Any], compiled: Mapping[str, Any], first_s: float) -> dict[str, Any]:
    """After how many steps, and epochs of so many images, compiling has been made up for."""
    saved_s = _BATCH / before["images_per_s"] - _BATCH / compiled["images_per_s"]
    ratio = round(compiled["images_per_s"] / before["images_per_s"], 2)
    if saved_s <= 0:
        return {"ratio_to_the_line_before": ratio, "pays_after_steps": None}
    steps = first_s / saved_s
    return {
        "ratio_to_the_line_before": ratio,
        "pays_after_steps": round(steps),
        f"pays_after_epochs_of_{_EPOCH_IMAGES}_images": round(steps * _BATCH / _EPOCH_IMAGES, 1),
    }


def _seconds(step: Step, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        step()
    return time.perf_counter() - began


def _show(report: Mapping[str, Any]) -> None:
    console = Console()
    right = ("images/s", "ratio", "range")
    for work, lines in report["lines"].items():
        table = Table(Column(work), *(Column(name, justify="right") for name in right), Column("compiling"))
        for name, line in lines.items():
            compiling = ""
            if "first_s" in line:
                after = line["pays_after_steps"]
                compiling = f"{line['first_s']} s, " + (f"pays after {after:,} steps" if after else "never pays")
            low, high = line["ratio_range"]
            table.add_row(
                name, f"{line['images_per_s']:.0f}", f"{line['ratio']:.2f}", f"{low:.2f}–{high:.2f}", compiling
            )
        console.print(table)
    print(f"{report['hardware']}, torch {report['versions']['torch']}, {report['rounds']} rounds")


if __name__ == "__main__":
    main()
