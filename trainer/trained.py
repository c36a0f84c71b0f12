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
MOST_PX = 20_000


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


class Trained:
    """Networks that classify image files."""

    def __init__(self, description: Description, modules: list[nn.Module], device: torch.device) -> None:
        self.description = description
        self.modules = modules
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
        """uint8 images (batch, channel, height, width) to probabilities (batch, class), averaged over the networks."""
        said = self.description
        ready = EXACT.laid_out(transforms.normalised(images.to(self._device), said.mean, said.std))
        found = [probabilities(module(ready), said.multi_label).double() for module in self.modules]
        return torch.stack(found).mean(dim=0).float().cpu()


def load(run: Path, device: torch.device) -> Trained:
    """The network that a run, or a copy of its `out/`, holds. Raises RunDirRefused, WeightsRefused, RecipeRefused."""
    out = run / "out" if (run / "out").is_dir() else run
    said = describe(out / "model.json")
    modules: list[nn.Module] = []
    for name in said.ensemble or ("weights.safetensors",):
        network = models.build(said.arch, len(said.classes), said.head)
        loaded = weights.load_pretrained(network, str(out / name))
        if unfit := (*loaded.missing, *loaded.ignored):
            what = f"{out / name} does not hold the whole network: {unfit[0]} is missing or of another shape"
            raise WeightsRefused(what, "Copy the run again")
        EXACT.lay_out(network.module)
        modules.append(network.module.eval().to(device))
    return Trained(said, modules, device)


def describe(path: Path) -> Description:
    """What the file says, checked: it may have come from anywhere. Raises RunDirRefused."""
    try:
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
    except (ValueError, TypeError, KeyError, AttributeError, TrainerError) as error:
        raise RunDirRefused(
            f"{path} is not what a run leaves: {error}".splitlines()[0], "Copy the run again"
        ) from error
    return said


def _check(said: Description) -> None:
    whole = (said.size_px, said.decoded_px, said.tta, said.seed)
    if (
        not all(isinstance(value, int) and value >= 0 for value in whole)
        or not 8 <= said.size_px <= said.decoded_px < 20000
    ):
        raise ValueError(f"sizes or counts that cannot be: {whole}")
    if len(said.classes) < 2 or not all(isinstance(name, str) for name in (said.arch, said.head, *said.classes)):
        raise ValueError("its classes or names are no texts")
    if len(said.mean) != 3 or len(said.std) != 3 or not all(0 < float(value) < 1 for value in (*said.mean, *said.std)):
        raise ValueError("its mean or std is not three numbers between 0 and 1")
    if said.multi_label != isinstance(said.threshold, float):
        raise ValueError("a threshold is needed where an image may have several labels, and only there")
    # A name with a folder in it could point outside of the run.
    if any(not isinstance(name, str) or Path(name).name != name for name in said.ensemble):
        raise ValueError("its ensemble names files outside of the folder")
