"""Pretrained weights into a network, its weights out: safetensors files, which hold nothing but tensors (law 8)."""

import hashlib
import re
import urllib.error
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.errors import WeightsRefused
from trainer.models import OWN, Network
from trainer.rundir import write_atomically

# Named, because what "the best available" means changes: ResNet50's newer set fine-tunes differently.
IMAGENET = "IMAGENET1K_V1"

# torchvision's DenseNet files are older than its layers' names; its own loader renames them so (densenet.py).
OLD_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Which of a network's tensors came from a file."""

    source: str
    loaded: int
    missing: tuple[str, ...]  # in the head, which keeps its random start
    ignored: tuple[str, ...]  # in the file, for another head


def load_pretrained(network: Network, source: str | bool) -> Loaded:
    """Put weights into the network: from a safetensors file with its vendor's names, or (True) torchvision's download.

    The head may be absent or another one: the vendor's classifier, or our last layer for another number of classes.
    Anything else that is missing, unexpected, wrongly shaped, of another kind of number or not finite is refused by
    name. Floating-point numbers of another width are converted. Raises WeightsRefused; the network is then unchanged.
    """
    if source is True:
        name, tensors = f"torchvision {IMAGENET}", _downloaded(network)
    else:
        name, tensors = str(source), _read(Path(str(source)))
    own = network.module.state_dict()
    fitting: dict[str, Tensor] = {}
    ignored, faults = [], []
    for key, tensor in tensors.items():
        target = next((target for target in (f"{network.prefix}{key}", key) if target in own), key)
        if target not in own:
            if _below(key.removeprefix(network.prefix), network.replaced):
                ignored.append(key)
            else:
                faults.append(f"{key} is not part of {network.arch}")
        elif _of_other_classes(own, target, tensor):
            ignored.append(key)
        else:
            fitting[target] = tensor
            faults += (f"{key} {fault}" for fault in _faults(tensor, own[target]))
    missing = tuple(key for key in own if key not in fitting)
    faults += (f"{key} is missing" for key in missing if not key.startswith("head."))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise WeightsRefused(
            f"{name} does not fit {network.arch}: {faults[0]}{more}",
            "Give the weights of this network, or another arch or head",
        )
    network.module.load_state_dict(fitting, strict=False)
    return Loaded(source=name, loaded=len(fitting), missing=missing, ignored=tuple(ignored))


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors of a network under their names. Raises DiskFull, RunDirRefused."""
    write_atomically(path, save({key: tensor.contiguous() for key, tensor in tensors.items()}))


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        next_step = "Give a .safetensors file: other formats can run code when they are read"
        raise WeightsRefused(f"{path} is not a safetensors file", next_step)
    try:
        if not path.is_file():  # a folder, a pipe that would never end, a link to itself
            raise WeightsRefused(f"There is no weights file {path}", "Check the path")
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsRefused(
            f"The weights {path} cannot be read: {error}", "Check the path, or copy the file again"
        ) from error
    return tensors


def _of_other_classes(own: Mapping[str, Tensor], key: str, tensor: Tensor) -> bool:
    """Whether this is our head's last layer for another number of classes, as in the weights of an earlier run."""
    last_layer = list(own)[-1].rpartition(".")[0]
    same_but_first = tensor.ndim == own[key].ndim and tensor.shape[1:] == own[key].shape[1:]
    return key.startswith(f"{last_layer}.") and same_but_first and tensor.shape != own[key].shape


def _faults(tensor: Tensor, own: Tensor) -> Iterator[str]:
    if tensor.shape != own.shape:
        yield f"has shape {tuple(tensor.shape)} instead of {tuple(own.shape)}"
    if tensor.dtype != own.dtype and not (tensor.is_floating_point() and own.is_floating_point()):
        yield f"has numbers of kind {_kind(tensor)} instead of {_kind(own)}"
    elif not torch.isfinite(tensor.to(own.dtype)).all():
        yield "holds a number that is not finite"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _below(key: str, layers: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{layer}.") for layer in layers)


def _downloaded(network: Network) -> dict[str, Tensor]:
    if network.arch in OWN:
        raise WeightsRefused(
            f"There are no ImageNet weights for {network.arch}",
            "Train it from scratch, or choose a torchvision network",
        )
    if network.arch.startswith("timm/"):
        raise WeightsRefused(
            f"The weights of {network.arch} are not downloaded: nothing here holds their hash",
            "Fetch its model.safetensors from huggingface.co/timm, and give pretrained = FILE.safetensors",
        )
    try:
        weights = torchvision.models.get_model_weights(network.arch)[IMAGENET]
    except KeyError as error:
        raise WeightsRefused(
            f"torchvision has no {IMAGENET} weights for {network.arch}", "Give --weights FILE.safetensors"
        ) from error
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        if kept.exists():
            _check_hash(kept)
        # torch checks the hash of what it downloads now, but takes an earlier download as it is
        tensors: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (
        urllib.error.URLError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: the file's hash is not the one in its name
        next_step = "Check the network, or give --weights FILE.safetensors"
        raise WeightsRefused(
            f"The ImageNet weights could not be downloaded from {weights.url}: {error}", next_step
        ) from error
    return _renewed(tensors, network)


def _check_hash(file: Path) -> None:
    """Refuse a vendor's file whose SHA-256 does not begin with what stands in its name, such as -b0353104.pth."""
    expected = file.stem.rpartition("-")[2]
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(expected):
        raise WeightsRefused(f"{file} is not what torchvision published under that name", "Delete it and try again")


def _renewed(tensors: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """torchvision's older files under today's names, with BatchNorm's counters, which they lack and nothing uses."""
    renamed = {OLD_DENSENET_NAME.sub(r"\1\2", key): tensor for key, tensor in tensors.items()}
    own = {key.removeprefix(network.prefix): tensor for key, tensor in network.module.state_dict().items()}
    counters = {key: tensor for key, tensor in own.items() if key.endswith("num_batches_tracked")}
    return {**{key: tensor for key, tensor in counters.items() if not key.startswith("head.")}, **renamed}
