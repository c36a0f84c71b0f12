"""Networks by name, with a fresh head for the classes at hand, and their layer groups.

The groups follow fast.ai 0.7: one rate for the early layers (stride up to 8), one for the late ones, one for the head.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn

from trainer.errors import RecipeRefused
from trainer.knobs import closest
from trainer.recipe import Recipe

# Widths of our own networks' blocks; each block halves the image.
OWN = {"digits_net": (32, 64), "photo_net": (16, 32, 64, 128)}

# These return more than class scores while training, or have no linear layer to replace.
UNSUITED = frozenset({"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"})

# Name prefixes of each group but the last, which is the head. ResNet's are fast.ai 0.7's; MobileNetV2's follow them.
EARLY_AND_LATE = {
    "resnet": (("conv1", "bn1", "layer1", "layer2"), ("layer3", "layer4")),
    "mobilenet_v2": (
        tuple(f"features.{index}" for index in range(7)),
        tuple(f"features.{index}" for index in range(7, 19)),
    ),
}


class Network:
    """A classifier and its layer groups, of which the first ones can be frozen."""

    def __init__(self, module: nn.Module, groups: tuple[tuple[str, ...], ...], last_layer: str) -> None:
        self.module = module
        self.last_layer = last_layer  # the name of the linear layer that was made for our classes
        self._groups = groups
        self._frozen = 0

    @property
    def group_count(self) -> int:
        return len(self._groups)

    def group_parameters(self) -> list[list[nn.Parameter]]:
        """Every parameter, by layer group, first layers first."""
        grouped: list[list[nn.Parameter]] = [[] for _ in self._groups]
        for name, parameter in self.module.named_parameters():
            grouped[self._group_of(name)].append(parameter)
        return grouped

    def freeze_to(self, group: int) -> None:
        """Freeze the groups before this one; a negative number counts from the head."""
        self._frozen = group % self.group_count
        for index, parameters in enumerate(self.group_parameters()):
            for parameter in parameters:
                parameter.requires_grad_(index >= self._frozen)

    def train(self) -> None:
        """Training mode for the groups that learn. A frozen group stays in evaluation mode, as in fast.ai 0.7.

        Its BatchNorm statistics then stay what they were, and it gives the same activations as at prediction.
        """
        self.module.train()
        for name, module in self.module.named_modules():
            if (
                name
                and self._frozen
                and any(_below(name, prefix) for group in self._groups[: self._frozen] for prefix in group)
            ):
                module.eval()

    def _group_of(self, name: str) -> int:
        for index, prefixes in enumerate(self._groups):
            if any(_below(name, prefix) for prefix in prefixes):
                return index
        return 0  # a parameter outside every block, such as a vision transformer's class token, is an early one


def build(arch: str, class_count: int) -> Network:
    """The named network with random weights and `class_count` outputs. Raises RecipeRefused."""
    if arch in OWN:
        return Network(SmallNet(OWN[arch], class_count), (("body",), ("head",)), "head.3")
    known = [name for name in torchvision.models.list_models(module=torchvision.models) if name not in UNSUITED]
    if arch not in known:
        next_step = f"It must be a torchvision classifier that ends in a linear layer, or {' or '.join(OWN)}"
        raise RecipeRefused(f"There is no network {arch!r}{closest(arch, [*known, *OWN])}", next_step)
    module = torchvision.models.get_model(arch, weights=None)
    last_layer, old = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]
    module.set_submodule(last_layer, nn.Linear(old.in_features, class_count))
    return Network(module, _groups(arch, module, head=last_layer.split(".")[0]), last_layer)


@torch.no_grad()
def check(network: Network, recipe: Recipe) -> None:
    """Refuse stages that do not fit the network, before anything is trained. Raises RecipeRefused."""
    count = network.group_count
    for stage in recipe.stages:
        if not -count <= stage.freeze_to < count:
            what = (
                f"Stage {stage.name!r} freezes to group {stage.freeze_to}, but {recipe.arch} has {count} layer groups"
            )
            raise RecipeRefused(what, f"Choose {-count} to {count - 1}")
        if isinstance(stage.lr, tuple) and len(stage.lr) != count:
            what = (
                f"Stage {stage.name!r} has {len(stage.lr)} learning rates, but {recipe.arch} has {count} layer groups"
            )
            raise RecipeRefused(what, "Give one rate, or one per group")
        try:
            network.module.eval()(torch.zeros(1, 3, stage.size_px, stage.size_px))
        except (AssertionError, RuntimeError) as error:  # shrunk to nothing, or a transformer of a fixed size
            what = f"Stage {stage.name!r}: {recipe.arch} cannot take images of {stage.size_px} px: {error}"
            raise RecipeRefused(what.rstrip(".!"), "Change size_px or arch") from error


class SmallNet(nn.Module):
    """Two 3×3 convolutions and a halving per block, then the average over the image and one linear layer."""

    def __init__(self, widths: tuple[int, ...], class_count: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(layer for before, width in pairwise((3, *widths)) for layer in _block(before, width))
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1], class_count)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) to class scores (batch, class)."""
        scores: Tensor = self.head(self.body(images))
        return scores


def _block(before: int, width: int) -> Iterator[nn.Module]:
    for channels in (before, width):
        yield nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        yield nn.BatchNorm2d(width)
        yield nn.ReLU(inplace=True)
    yield nn.MaxPool2d(2)


def _groups(arch: str, module: nn.Module, head: str) -> tuple[tuple[str, ...], ...]:
    family = "resnet" if arch.startswith(("resnet", "resnext", "wide_resnet")) else arch
    if family in EARLY_AND_LATE:
        return (*EARLY_AND_LATE[family], (head,))
    return (tuple(name for name, _ in module.named_children() if name != head), (head,))


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
