"""One run of fastai for vs_fastai.py, as fastai's documentation has it: `fine_tune(2)` of MobileNetV2, then TTA.

    PYTHON benchmarks/fastai_peer.py DATA WEIGHTS OUT [--seed 0] [--tuned] [--size-px 224] [--batch-size 32]

PYTHON has fastai 2.8 and safetensors. OUT is a JSON file with every evaluation of the validation part and its moment,
the predicted class of each image, plain and with TTA, and what the batches were seen to be computed in.
"""

import argparse
import json
import platform
import time
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    default_split,
    imagenet_stats,
    model_meta,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune MobileNetV2 with fastai.")
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuned", action="store_true", help="channels_last and bf16")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()

    set_seed(options.seed)
    loaders = ImageDataLoaders.from_folder(
        options.data,
        train="train",
        valid="valid",
        item_tfms=Resize(options.size_px * 256 // 224),
        batch_tfms=[*aug_transforms(size=options.size_px), Normalize.from_stats(*imagenet_stats)],
        bs=options.batch_size,
    )
    network = partial(_imagenet, options.weights)
    # fastai does not know where MobileNetV2 is cut, and its own `cut=` never arrives: all but the last child is body.
    model_meta[network] = {"cut": -1, "split": default_split}
    learner = vision_learner(loaders, network, metrics=accuracy)
    if options.tuned:
        learner.add_cbs([ChannelsLast(), Bfloat16OnCPU()])
    computed_in: Counter[str] = Counter()
    _watch(learner, computed_in)

    evaluations = Evaluations()
    learner.fine_tune(2, cbs=evaluations)
    tta, targets = learner.tta()
    evaluations.found.append(_evaluation("tta", float(accuracy(tta, targets))))

    plain, _ = learner.get_preds()  # what the last evaluation saw: not part of the time
    result = {
        "evaluations": evaluations.found,
        "predicted": {"plain": _by_image(loaders, plain), "tta": _by_image(loaders, tta)},
        "threads": torch.get_num_threads(),
        "loader_processes": loaders.train.fake_l.num_workers,
        "batches_computed_in": computed_in,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("fastai", "torch", "torchvision", "pillow", "numpy")},
    }
    options.out.write_text(json.dumps(result))


class Bfloat16OnCPU(Callback):
    """The forward pass in bf16. fastai's own `to_bf16` asks for CUDA's autocast, which does nothing on a CPU."""

    order = 10  # MixedPrecision's

    def before_batch(self) -> None:
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        self.autocast.__enter__()

    def after_pred(self) -> None:
        self.autocast.__exit__(None, None, None)
        self.learn.pred = self.pred.float()


class Evaluations(Callback):
    """The moment and the accuracy at the end of each epoch."""

    order = 60  # after the Recorder, which has it

    def __init__(self) -> None:
        self.found: list[dict[str, object]] = []

    def after_epoch(self) -> None:
        stage = "frozen" if self.opt.frozen_idx else "unfrozen"
        self.found.append(_evaluation(stage, float(self.learn.final_record[-1])))


def _evaluation(stage: str, score: float) -> dict[str, object]:
    return {"time": time.time(), "stage": stage, "accuracy": score}


def _imagenet(weights: Path, pretrained: bool) -> nn.Module:
    """torchvision's MobileNetV2, every tensor of its body from the file and no other."""
    model: nn.Module = mobilenet_v2()
    body = {name.removeprefix("features."): tensor for name, tensor in load_file(weights).items()}
    model.features.load_state_dict(body, strict=True)
    return model


def _watch(learner: Learner, computed_in: Counter[str]) -> None:
    """Count the batches by the number format and memory layout that the body's last convolution gives."""
    last = [layer for layer in learner.model[0].modules() if isinstance(layer, nn.Conv2d)][-1]

    def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        layout = "channels_last" if output.is_contiguous(memory_format=torch.channels_last) else "channels first"
        computed_in[f"{output.dtype}, {layout}".removeprefix("torch.")] += 1

    last.register_forward_hook(note)


def _by_image(loaders: ImageDataLoaders, probabilities: Tensor) -> dict[str, str]:
    """Predicted class by "class/name" of the image."""
    files, classes = loaders.valid_ds.items, loaders.vocab
    return {
        f"{file.parent.name}/{file.name}": classes[int(label)]
        for file, label in zip(files, probabilities.argmax(dim=1), strict=True)
    }


if __name__ == "__main__":
    main()
