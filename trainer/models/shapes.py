"""What shape every layer gives, found by running the network without data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


@torch.no_grad()
def output_shapes(module: nn.Module, size_px: int) -> dict[str, tuple[int, ...]]:
    """The shape of what each layer gives for one image, without the batch, by the layer's name, in order of their end.

    Runs on torch's meta device: shapes are computed, numbers are not. Raises what the layers raise on a wrong size.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output  # attention gives its weights beside
            shapes[name] = tuple(first.shape[1:])

        return note

    layers = dict(module.named_modules())
    modes = {name: layer.training for name, layer in layers.items()}
    handles = [layer.register_forward_hook(noting(name)) for name, layer in layers.items()]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    try:
        module.eval()
        weightless = {name: tensor.to("meta") for name, tensor in tensors.items()}
        functional_call(module, weightless, (torch.zeros(1, 3, size_px, size_px, device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.training = modes[name]
    return shapes
