"""A body and a head as one network, whose layer groups can be frozen."""

from torch import Tensor, nn

from trainer.models import groups, heads
from trainer.models.bodies import OWN, Body, sequence
from trainer.models.shapes import output_shapes

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Network:
    """A classifier in two parts, and its layer groups, of which the first ones can be frozen.

    `module` is the layers of the body under the names of their vendor, the pooling, and `head`, one after the other:
    `module(images) == classify(features(images))`.
    """

    def __init__(self, arch: str, body: Body, head: str, class_count: int) -> None:
        self.arch = arch
        self.prefix = body.prefix  # what the vendor's names begin with here
        self.replaced = body.replaced  # the vendor's layers that are not here, without that prefix
        shapes = output_shapes(body.layers, body.size_px)
        output = shapes[""]  # (channel, height, width) of a feature map, or (width,) of a vector
        layers = dict(body.layers.named_children())
        if len(output) == 3:
            self.head_kind = "linear" if arch in OWN else head
            layers["pool"] = heads.pool(self.head_kind)
        else:
            self.head_kind = "linear"
        self.feature_width = output[0] * (2 if self.head_kind == "concat_pool" else 1)
        layers["head"] = heads.head(self.head_kind, self.feature_width, class_count, body.dropout)
        self.module = sequence(layers)
        self._norm_frozen = False
        self.frozen = 0  # how many of the first groups do not learn
        self._groups = (*groups.early_and_late(body.layers, shapes, body.size_px), ("head",))

    def features(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, width): all that is frozen when only the head learns."""
        features: Tensor = self.module[:-1](images)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """(batch, width) to class scores (batch, class)."""
        scores: Tensor = self.module[-1](features)
        return scores

    @property
    def head(self) -> nn.Module:
        """The layers that learn the classes from scratch."""
        return self.module[-1]

    @property
    def group_count(self) -> int:
        return len(self._groups)

    def group_parameters(self) -> list[list[nn.Parameter]]:
        """Every parameter, by layer group, first layers first."""
        grouped: list[list[nn.Parameter]] = [[] for _ in self._groups]
        for name, parameter in self.module.named_parameters():
            grouped[groups.index_of(name, self._groups)].append(parameter)
        return grouped

    def freeze_to(self, group: int, norm: bool = False) -> None:
        """Freeze the groups before this one; a negative number counts from the head.

        With `norm`, BatchNorm before the head keeps its statistics even where its layer learns.
        """
        self._norm_frozen = norm
        self.frozen = group % self.group_count
        for index, parameters in enumerate(self.group_parameters()):
            for parameter in parameters:
                parameter.requires_grad_(index >= self.frozen)

    def train(self) -> None:
        """Training mode for the groups that learn. A frozen group stays in evaluation mode, as in fast.ai 0.7.

        Its BatchNorm statistics then stay what they were, and it gives the same activations as at prediction.
        """
        self.module.train()
        for name, module in self.module.named_modules():
            if not name:
                continue
            keeps = self._norm_frozen and isinstance(module, NORMS) and not groups.within(name, self._groups[-1:])
            if keeps or groups.within(name, self._groups[: self.frozen]):
                module.eval()
