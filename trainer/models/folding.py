"""BatchNorm folded into the convolutions before it, for a body that is frozen: the same features with less work."""

import copy

from torch import fx, nn
from torch.fx.experimental import optimization

from trainer.models.network import Network


def frozen_forward(network: Network) -> nn.Module:
    """A copy of body and pooling in evaluation mode, each BatchNorm that alone follows a convolution folded into it.

    (batch, 3, height, width) to (batch, width). In fp32 its features differ from the network's by rounding alone.
    A body whose Python code torch.fx cannot follow, as some of timm's, is copied as it is.
    """
    body = copy.deepcopy(network.module[:-1]).eval().requires_grad_(False)
    try:
        graph = fx.symbolic_trace(body)
    except Exception:  # whatever that code raises when it is handed a stand-in for a tensor
        return body
    folded: nn.Module = optimization.fuse(graph, no_trace=True).eval()  # the containers that fx makes anew too
    return folded
