"""A trained network, back from a run directory's `out/`: `model.json` and weights, nothing else of the run."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import models, randomness, transforms, weights
from trainer.augmentation import Augmentation
from trainer.decode import decode
from trainer.errors import RunDirRefused, TrainerError, WeightsRefused
from trainer.losses import probabilities
from trainer.pace import EXACT

FORMAT = 1
# The most that a recipe can ask for, and more: numbers that a run cannot have left would only eat the memory.
MOST_SIZE_PX, MOST_DECODED_PX, MOST_VIEWS, MOST_CLASSES = 4096, 16_384, 1000, 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What `model.json` says: all that is needed beside the weights to classify an image as the run did."""

    arch: str
    head: str
    classes: tuple[str, ...]
    multi_label: bool
    threshold: float | None  # from which a label is given, where an image may have several
    size_px: int
    decoded_px: int  # first the shorter side is brought to this, then to size_px, then the middle square is taken
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tta: int  # augmented views that the run averaged with the plain one
    seed: int  # of those views
    augmentation: Augmentation
    ensemble: tuple[str, ...]  # files of weights beside weights.safetensors, averaged in its place


class Classifier(nn.Module):
    """uint8 images (batch, channel, height, width) to probabilities (batch, class), averaged over the networks."""

    def __init__(self, description: Description, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._description = description

    def forward(self, images: Tensor) -> Tensor:
        said = self._description
        ready = EXACT.laid_out(transforms.normalised(images, said.mean, said.std))
        found = [probabilities(network(ready), said.multi_label).double() for network in self.networks]
        return torch.stack(found).mean(dim=0).float()


class Trained:
    """A run's network, or its snapshots together, classifying image files."""

    def __init__(self, description: Description, networks: list[nn.Module], device: torch.device) -> None:
        self.description = description
        self.classifier = Classifier(description, networks).eval().to(device)
        self._device = device

    def read(self, path: Path) -> Tensor:
        """The file's pixels, as the run kept them: uint8 (channel, height, width). Raises UnreadableImage."""
        return transforms.shorter_side(decode(path), self.description.decoded_px)

    def views(self, image: Tensor, digest: str, count: int) -> Tensor:
        """The plain view and `count` augmented ones: uint8 (view, channel, height, width)."""
        said = self.description
        varied = (
            transforms.augmented(image, said.size_px, said.augmentation, randomness.view(said.seed, digest, number))
            for number in range(1, count + 1)
        )
        return torch.stack([transforms.validation(image, said.size_px), *varied])

    @torch.inference_mode()
    def classify(self, images: Tensor) -> Tensor:
        """uint8 images (batch, channel, height, width) to probabilities (batch, class), on the CPU."""
        found: Tensor = self.classifier(images.to(self._device))
        return found.cpu()


def load(run: Path, device: torch.device) -> Trained:
    """The network that a run, or a copy of its `out/`, holds. Raises RunDirRefused, WeightsRefused, RecipeRefused."""
    out = run / "out" if (run / "out").is_dir() else run
    said = describe(out / "model.json")
    networks: list[nn.Module] = []
    for name in said.ensemble or ("weights.safetensors",):
        network = models.build(said.arch, len(said.classes), said.head)
        loaded = weights.load_pretrained(network, str(out / name))
        if unfit := (*loaded.missing, *loaded.ignored):
            what = f"{out / name} does not hold the whole network: {unfit[0]} is missing or of another shape"
            raise WeightsRefused(what, "Copy the run again")
        EXACT.lay_out(network.module)
        networks.append(network.module)
    return Trained(said, networks, device)


def describe(path: Path) -> Description:
    """What the file says, checked: it may have come from anywhere. Raises RunDirRefused."""
    try:
        if path.exists() and not path.is_file():  # a folder, a pipe or a device, which would never end
            raise RunDirRefused(f"{path} is not a file", "Copy the run again")
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] > FORMAT:
            raise RunDirRefused(f"{path} was written by a newer trainer", "Upgrade this one")
        kept: dict[str, Any] = {spec.name: values[spec.name] for spec in fields(Description)}
        kept = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
        said = Description(**kept | {"augmentation": Augmentation(**values["augmentation"])})
        _check(said)
    except OSError as error:
        raise RunDirRefused(
            f"{path} cannot be read: {error.strerror}", "Give a run directory that has finished, or its out/"
        ) from error
    except RunDirRefused:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, TrainerError) as error:
        raise RunDirRefused(
            f"{path} is not what a run leaves: {error}".splitlines()[0], "Copy the run again"
        ) from error
    return said


def _check(said: Description) -> None:
    if not isinstance(said.classes, tuple) or not isinstance(said.ensemble, tuple):
        raise ValueError("its classes or its ensemble are no list")
    if not all(isinstance(name, str) for name in (said.arch, said.head, *said.classes, *said.ensemble)):
        raise ValueError("its names are no texts")
    if said.head not in models.HEADS or not 1 <= len(said.classes) <= MOST_CLASSES:
        raise ValueError("a head that does not exist, or no classes")
    if not all(type(value) is int and value >= 0 for value in (said.size_px, said.decoded_px, said.tta, said.seed)):
        raise ValueError("sizes or counts that are no whole numbers from 0 on")
    fitting = 8 <= said.size_px <= said.decoded_px and said.size_px <= MOST_SIZE_PX
    if not fitting or said.decoded_px > MOST_DECODED_PX or said.tta > MOST_VIEWS:
        raise ValueError(f"sizes or counts that cannot be: {said.size_px}, {said.decoded_px}, {said.tta}")
    if not (_three_numbers(said.mean, least=0) and _three_numbers(said.std, least=1e-3)):
        raise ValueError("its mean or std is not three numbers from 0 to 1")
    if type(said.multi_label) is not bool or said.multi_label != isinstance(said.threshold, float):
        raise ValueError("a threshold is needed where an image may have several labels, and only there")
    # A name with a folder in it could point outside of the run; one that comes twice could fill the memory.
    if any(Path(name).name != name for name in said.ensemble):
        raise ValueError("its ensemble names files outside of the folder")
    if len(set(said.ensemble)) < len(said.ensemble):
        raise ValueError("its ensemble names a file twice")


def _three_numbers(values: object, least: float) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and least <= value <= 1 for value in values)
    )
