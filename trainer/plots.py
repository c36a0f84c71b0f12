"""Pictures of a run: losses, accuracy and learning rate over time, and the learning-rate finder's curve."""

import io
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.history import Epoch, best
from trainer.recipe import Recipe
from trainer.schedules import share

TRAIN, VALID, QUIET = "#1f77b4", "#d95f02", "#999999"


def history_png(recipe: Recipe, history: Sequence[Epoch], head_rates: Sequence[float]) -> bytes:
    """The picture as PNG. `head_rates` is the head's highest learning rate in each stage."""
    figure = Figure(figsize=(9, 6.5), dpi=120, layout="constrained")  # a figure of our own: pyplot keeps global state
    FigureCanvasAgg(figure)
    figure.suptitle(f"{recipe.name}: {recipe.arch}, seed {recipe.seed}")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["rate", "rate"]], height_ratios=(3, 2))
    epochs = range(1, len(history) + 1)
    top = best(history)

    panels["loss"].plot(
        epochs, [epoch.train_loss for epoch in history], "o-", color=TRAIN, ms=3, label="training (smoothed)"
    )
    panels["loss"].plot(epochs, [epoch.valid_loss for epoch in history], "o-", color=VALID, ms=3, label="validation")
    panels["loss"].set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    panels["loss"].legend()

    panels["accuracy"].plot(epochs, [100 * epoch.accuracy for epoch in history], "o-", color=VALID, ms=3)
    panels["accuracy"].axhline(100 * top.accuracy, color=QUIET, lw=0.8, ls=":")
    title = f"Accuracy: last {history[-1].accuracy:.2%}, best {top.accuracy:.2%} (epoch {history.index(top) + 1})"
    panels["accuracy"].set(title=title, xlabel="epoch", ylabel="validation images right (%)")

    rates = _rates(recipe, history, head_rates)
    panels["rate"].plot(range(len(rates)), rates, color=TRAIN, lw=1)
    panels["rate"].set(
        title="Learning rate of the head", xlabel="step (batches)", ylabel="learning rate", ylim=(0, None)
    )

    for panel in panels.values():
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.25)
        panel.title.set_fontsize(10)
    for key in ("loss", "accuracy"):
        _mark_stages(panels[key], [epoch.stage for epoch in history], offset=0.5)
    _mark_stages(panels["rate"], [epoch.stage for epoch in history for _ in range(epoch.steps)], offset=0)
    return _png(figure)


def finder_png(
    title: str, rates: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float], chosen: str
) -> bytes:
    """The finder's curve as PNG: smoothed loss over the learning rate, with what was suggested and what was chosen."""
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.plot(rates, losses, color=TRAIN, lw=1.2)
    for name, rate in suggestions.items():
        colour, style = (VALID, "-") if name == chosen else (QUIET, "--")
        label = f"{name}: {rate:.1e}" + (" (chosen)" if name == chosen else "")
        panel.axvline(rate, color=colour, lw=1, ls=style, label=label)
    finite = [loss for loss in losses if isfinite(loss)]
    low, high = min(finite), min(max(finite), 2 * finite[0])
    panel.set(
        title=title,
        xscale="log",
        xlabel="learning rate of the head",
        ylabel="training loss (smoothed)",
    )
    if low < high:
        panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    panel.grid(alpha=0.25)
    panel.legend()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _rates(recipe: Recipe, history: Sequence[Epoch], head_rates: Sequence[float]) -> list[float]:
    rates: list[float] = []
    for epoch in history:
        stage, highest = recipe.stages[epoch.stage_index], head_rates[epoch.stage_index]
        before, cycle_steps = (epoch.epoch - 1) * epoch.steps, stage.first_cycle_epochs * epoch.steps
        shares = (share(stage.schedule, before + step, cycle_steps, stage.cycle_mult) for step in range(epoch.steps))
        rates += [highest * each for each in shares]
    return rates


def _mark_stages(panel: Any, stages: Sequence[str], offset: float) -> None:
    """A dotted line and a name where each stage after the first begins."""
    for place in range(1, len(stages)):
        if stages[place] != stages[place - 1]:
            panel.axvline(place + offset, color=QUIET, lw=0.8, ls="--")
            panel.annotate(
                f" {stages[place]}",
                (place + offset, 1),
                xycoords=("data", "axes fraction"),
                va="top",
                color=QUIET,
                fontsize=8,
            )
