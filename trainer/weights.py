"""Pretrained weights into a network, its weights out: safetensors files, which hold nothing but tensors (law 8)."""

import urllib.error
from dataclasses import dataclass
from pathlib import Path

import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trainer.errors import WeightsRefused
from trainer.models import OWN, Network
from trainer.rundir import write_atomically

# Named, because what "the best available" means changes: ResNet50's newer set fine-tunes differently.
IMAGENET = "IMAGENET1K_V1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Which of a network's tensors came from a file; the last layer's never do, for it belongs to other classes."""

    source: str
    loaded: int
    missing: tuple[str, ...]  # in the head, which keeps its random start


def load_pretrained(network: Network, arch: str, source: str | bool) -> Loaded:
    """Put weights into the network: from a safetensors file with torchvision's names, or (True) torchvision's download.

    The head may be absent. Anything else that is missing, unexpected or of another shape is refused by name.
    Raises WeightsRefused.
    """
    if source is True:
        name, tensors = f"torchvision {IMAGENET}", _downloaded(arch)
    else:
        name, tensors = str(source), _read(Path(str(source)))
    own = network.module.state_dict()
    head = network.last_layer.split(".")[0]
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{network.last_layer}.")}
    missing = tuple(key for key in own if key not in tensors)
    faults = [f"{key} is missing" for key in missing if key.split(".")[0] != head]
    for key, tensor in tensors.items():
        if key not in own:
            faults.append(f"{key} is not part of {arch}")
        elif tensor.shape != own[key].shape:
            faults.append(f"{key} has shape {tuple(tensor.shape)} instead of {tuple(own[key].shape)}")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise WeightsRefused(
            f"{name} does not fit {arch}: {faults[0]}{more}", "Give the weights of this network, or another arch"
        )
    network.module.load_state_dict(tensors, strict=False)
    return Loaded(source=name, loaded=len(tensors), missing=missing)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write every tensor of the network under torchvision's names. Raises DiskFull, RunDirRefused."""
    write_atomically(path, save({key: tensor.contiguous() for key, tensor in module.state_dict().items()}))


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        next_step = "Give a .safetensors file: other formats can run code when they are read"
        raise WeightsRefused(f"{path} is not a safetensors file", next_step)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsRefused(
            f"The weights {path} cannot be read: {error}", "Check the path, or copy the file again"
        ) from error
    return tensors


def _downloaded(arch: str) -> dict[str, Tensor]:
    if arch in OWN:
        raise WeightsRefused(
            f"There are no ImageNet weights for {arch}", "Train it from scratch, or choose a torchvision network"
        )
    try:
        weights = torchvision.models.get_model_weights(arch)[IMAGENET]
    except KeyError as error:
        raise WeightsRefused(
            f"torchvision has no {IMAGENET} weights for {arch}", "Give --weights FILE.safetensors"
        ) from error
    try:
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
    return tensors
