"""The optimizer of one stage: a parameter group per layer group, weight decay only where it belongs."""

from collections.abc import Sequence

import torch
from torch import nn

from trainer.models import Network
from trainer.schedules import group_rates
from trainer.stage import Stage


def build(network: Network, stage: Stage, rates: float | tuple[float, ...]) -> torch.optim.Optimizer:
    """SGD or AdamW over the groups that learn, each with its highest rate as `highest_lr`.

    `rates` is a stage's `lr` as a number or a tuple: what the recipe says, or what the finder chose.

    Biases and the scales of norm layers are not decayed: they have one dimension, and pulling them to zero only hurts
    (He et al., "Bag of Tricks for Image Classification", arXiv:1812.01187, section 3.1).
    """
    groups = []
    highest = group_rates(rates, stage.spread, network.group_count)
    for parameters, rate in zip(network.group_parameters(), highest, strict=True):
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        for decay, part in ((stage.weight_decay, _matrices(learning)), (0.0, _vectors(learning))):
            if part:
                groups.append({"params": part, "lr": rate, "highest_lr": rate, "weight_decay": decay})
    # fused: one kernel for all parameters, on a CPU too, where a small network's step is otherwise mostly Python
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(stage.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, momentum=stage.momentum, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group this share of its highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest_lr"] * share


def _matrices(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.ndim > 1]


def _vectors(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.ndim <= 1]
