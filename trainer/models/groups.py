"""Layer groups: which layers learn at one rate and are frozen together.

fast.ai 0.7 has three for a ResNet: conv1 to layer2, layer3 and layer4, the head. Our rule for every network gives the
same: early are the layers up to a stride of 8, late those after, then the head. A network whose layers do not lie on
both sides (a vision transformer divides by 16 at once; a small one never gets there) has two: its body, its head.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

Groups = tuple[tuple[str, ...], ...]  # the names of each group's layers
EARLY_STRIDE = 8


def early_and_late(body: nn.Module, shapes: Mapping[str, tuple[int, ...]], size_px: int) -> Groups:
    """The groups of the body's layers; `shapes` is what they give for an image of `size_px`."""
    layers = dict(_layers(body))
    names = list(layers)
    strides = [size_px / shapes[name][1] if len(shapes.get(name, ())) == 3 else 0 for name in names]
    # Without padding a map is a little smaller than its stride says, so the border lies halfway to the next one.
    beyond = (index for index, stride in enumerate(strides) if stride > EARLY_STRIDE * math.sqrt(2))
    split = next(beyond, len(names))
    early, late = tuple(names[:split]), tuple(names[split:])
    if all(any(True for name in part for _ in layers[name].parameters()) for part in (early, late)):
        return (early, late)
    return (tuple(name for name, _ in body.named_children()),)


def index_of(parameter: str, groups: Groups) -> int:
    """The group of a parameter. One outside every layer, such as timm's position embedding, is an early one."""
    return next((index for index, names in enumerate(groups) if within(parameter, (names,))), 0)


def within(name: str, groups: Sequence[tuple[str, ...]]) -> bool:
    """Whether this is one of the groups' layers or a part of one."""
    return any(name == layer or name.startswith(f"{layer}.") for names in groups for layer in names)


def _layers(body: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers in order, those of a whole model too; where the vendor keeps stages in one sequence, the stages."""
    for name, child in body.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from ((f"{name}.{part}", layer) for part, layer in child.named_children())
        elif name == "body":
            yield from ((f"body.{part}", layer) for part, layer in _layers(child))
        else:
            yield name, child
