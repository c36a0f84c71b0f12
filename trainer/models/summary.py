"""What a network is made of, a line per layer, as fast.ai's `learn.summary()` shows it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from trainer.models.network import Network
from trainer.models.shapes import output_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layer: its name in the weights, its kind, and what it gives for one image."""

    name: str
    kind: str
    output: tuple[int, ...]  # without the batch
    parameters: int
    trained: bool  # false too for a layer without parameters


def summary(network: Network, size_px: int) -> list[Row]:
    """The layers in the network's order. Every parameter is counted in exactly one row."""
    shapes = output_shapes(network.module, size_px)
    layers = dict(network.module.named_modules())
    owned: dict[str, list[nn.Parameter]] = {name: [] for name in layers}
    for name, parameter in network.module.named_parameters():
        owned[_owner(name, shapes)].append(parameter)
    return [
        Row(
            name=name,
            kind=type(layer).__name__,
            output=shapes[name],
            parameters=sum(parameter.numel() for parameter in owned[name]),
            trained=any(parameter.requires_grad for parameter in owned[name]),
        )
        for name, layer in layers.items()
        if name in shapes and (owned[name] or not any(True for _ in layer.children()))
    ]


def lines(network: Network, size_px: int) -> list[str]:
    """The summary as a table of text, with the totals below it."""
    rows = summary(network, size_px)
    cells = [("layer", "kind", "output", "parameters", "")]
    cells += [
        (row.name, row.kind, " × ".join(map(str, row.output)), f"{row.parameters:,}", _state(row)) for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    table = [
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {output:<{widths[2]}}  {count:>{widths[3]}}  {state}".rstrip()
        for name, kind, output, count, state in cells
    ]
    return [*table, *_totals(network)]


def _owner(parameter: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """The innermost layer that was run and holds the parameter: attention reads its projections' weights itself."""
    name = parameter
    while name:
        name = name.rpartition(".")[0]
        if name in shapes:
            break
    return name


def _state(row: Row) -> str:
    return "" if not row.parameters else "trained" if row.trained else "frozen"


def _totals(network: Network) -> Iterator[str]:
    by_group = [sum(parameter.numel() for parameter in group) for group in network.group_parameters()]
    trained = sum(by_group[network.frozen :])
    yield f"{network.arch} with a {network.head_kind} head: {sum(by_group):,} parameters, {trained:,} trained"
    yield f"{network.group_count} layer groups: {', '.join(f'{count:,}' for count in by_group)}"
