"""What follows the body: the pooling over its feature map, and the layers that learn the classes from scratch."""

import torch
from torch import Tensor, nn

HEADS = ("concat_pool", "linear")
HIDDEN = 512
DROPOUTS = (0.25, 0.5)


class ConcatPool(nn.Module):
    """Each channel's largest value, then each one's average: (batch, channel, height, width) to (batch, 2 channel)."""

    def forward(self, maps: Tensor) -> Tensor:
        largest = nn.functional.adaptive_max_pool2d(maps, 1)
        average = nn.functional.adaptive_avg_pool2d(maps, 1)
        return torch.cat((largest, average), dim=1).flatten(1)


def pool(kind: str) -> nn.Module:
    """The pooling in front of that kind of head."""
    return ConcatPool() if kind == "concat_pool" else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def head(kind: str, width: int, class_count: int, dropout: float) -> nn.Sequential:
    """From pooled features (batch, width) to class scores (batch, class).

    "concat_pool" is fast.ai 0.7's: its layers, dropouts and initial values (ConvnetBuilder and apply_init there).
    "linear" is one layer after `dropout`, as torchvision's classifiers end.
    """
    if kind == "linear":
        dropouts = [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*dropouts, nn.Linear(width, class_count))
    hidden, last = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, class_count)
    for linear in (hidden, last):
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Dropout(DROPOUTS[0]),
        hidden,
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(DROPOUTS[1]),
        last,
    )
