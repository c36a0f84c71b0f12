"""Where a network's body comes from: torchvision, timm, or our own two; what it replaces there is its classifier."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet, MaxVit, VisionTransformer

from trainer.errors import RecipeRefused
from trainer.knobs import closest
from trainer.models.shapes import output_shapes
from trainer.recipe import IMAGENET_MEAN, IMAGENET_STD

# Widths of our own networks' blocks; each block halves the image.
OWN = {"digits_net": (32, 64), "photo_net": (16, 32, 64, 128)}

# torchvision's names for what follows the body.
CLASSIFIERS = frozenset({"avgpool", "dropout", "flatten", "fc", "classifier", "head", "heads"})

# Second classifiers, which only help to train from scratch and are not built here; the weights of these two networks
# expect pixels from −1 to 1 (see Rescale). Their initial weights are as published: the default warns.
SECOND_CLASSIFIERS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The layers up to the pooling, in order, under the names that the vendor's weights give them."""

    layers: nn.Sequential
    replaced: tuple[str, ...] = ()  # the vendor's layers that our head takes the place of
    prefix: str = ""  # of the vendor's names, where the whole model is one layer
    dropout: float = 0.0  # before the vendor's last linear layer
    size_px: int = 224  # an image that it takes


def find(arch: str) -> Body:
    """The body of that name with random weights. Raises RecipeRefused."""
    if arch in OWN:
        return Body(layers=sequence({"body": _own_body(OWN[arch])}), dropout=0.2)
    if arch.startswith("timm/"):
        return _from_timm(arch.removeprefix("timm/"))
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        next_step = f"It must be a torchvision classifier, timm/NAME, or {' or '.join(OWN)}"
        raise RecipeRefused(f"There is no network {arch!r}{closest(arch, [*known, *OWN])}", next_step)
    options = {"aux_logits": False, "init_weights": True} if arch in SECOND_CLASSIFIERS else {}
    return _from_torchvision(torchvision.models.get_model(arch, weights=None, **options), arch)


def sequence(layers: dict[str, nn.Module]) -> nn.Sequential:
    """The layers under their names, each applied to what the one before gives."""
    return nn.Sequential(OrderedDict(layers))


def _own_body(widths: tuple[int, ...]) -> nn.Sequential:
    """Two 3×3 convolutions and a halving per block."""
    return nn.Sequential(*(layer for before, width in pairwise((3, *widths)) for layer in _block(before, width)))


def _block(before: int, width: int) -> Iterator[nn.Module]:
    for channels in (before, width):
        yield nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        yield nn.BatchNorm2d(width)
        yield nn.ReLU(inplace=True)
    yield nn.MaxPool2d(2)


def _from_torchvision(model: nn.Module, arch: str) -> Body:
    children = dict(model.named_children())
    replaced = tuple(name for name in children if name in CLASSIFIERS)
    dropouts = [layer.p for name in replaced for layer in children[name].modules() if isinstance(layer, nn.Dropout)]
    dropout = dropouts[-1] if dropouts else 0.0
    if isinstance(model, VisionTransformer):  # its class token is no layer, so it stays whole
        model.heads = nn.Identity()
        return Body(
            layers=sequence({"body": model}),
            replaced=replaced,
            prefix="body.",
            dropout=dropout,
            size_px=model.image_size,
        )
    layers = {name: child for name, child in children.items() if name not in CLASSIFIERS}
    # What torchvision's own forward does besides calling its layers in order:
    if isinstance(model, DenseNet):
        layers["relu"] = nn.ReLU(inplace=True)
    if isinstance(model, MaxVit):
        layers["blocks"] = nn.Sequential(*model.blocks)
    if arch in SECOND_CLASSIFIERS:
        layers = {"transform_input": Rescale(), **layers}
        replaced += SECOND_CLASSIFIERS[arch]
    return Body(layers=sequence(layers), replaced=replaced, dropout=dropout)


class Rescale(nn.Module):
    """Pixels normalised as ImageNet's to −1..1, as torchvision's Inception weights expect (`transform_input` there)."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        self.register_buffer("scale", std / 0.5, persistent=False)  # no part of the vendor's weights
        self.register_buffer("shift", (mean - 0.5) / 0.5, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def _from_timm(name: str) -> Body:
    try:
        import timm
    except ImportError as error:
        raise RecipeRefused(f"timm/{name} needs the package timm", "Install it with: pip install timm") from error
    if not timm.is_model(name):  # also keeps out hf-hub: and local-dir: names, which timm would fetch
        hint = closest(name, timm.list_models())
        raise RecipeRefused(f"timm {timm.__version__} has no network {name!r}{hint}", "See timm.list_models()")
    for pooling, rank in (({"global_pool": ""}, 3), ({}, 1)):  # its feature map if it gives one, else its features
        try:
            model = timm.create_model(name, num_classes=0, **pooling)
            size_px = model.pretrained_cfg["input_size"][-1]
            output = output_shapes(model, size_px)[""]
        except Exception as error:  # timm has over a thousand models; each says in its own way what it cannot do
            reason = str(error)
            continue
        reason = f"it gives {' × '.join(map(str, output))}"
        if len(output) == rank and (rank == 1 or output[1] == output[2] > 1):  # channels first, and not pooled yet
            replaced = tuple(_classifiers(model, model.pretrained_cfg["classifier"] or ()))
            return Body(layers=sequence({"body": model}), replaced=replaced, prefix="body.", size_px=size_px)
    raise RecipeRefused(f"timm/{name} gives no features of an image: {reason}", "Choose another network")


def _classifiers(model: nn.Module, names: str | tuple[str, ...]) -> Iterator[str]:
    """The layers that timm left out for having no classes: all of each part of the model of which nothing is left."""
    for name in (names,) if isinstance(names, str) else names:
        part = name.split(".")[0]
        left = any(key.startswith(f"{part}.") for key in model.state_dict())
        yield name if left else part
