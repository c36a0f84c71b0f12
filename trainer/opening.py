"""A run before its first step: images found and decoded, network built, weights loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import data, metrics, models, randomness, report, weights
from trainer.data import pixels
from trainer.data.pixels import Pixels, Unreadable
from trainer.device import Device
from trainer.distributed import Team
from trainer.errors import BrokenImages, DataRefused
from trainer.keeper import Keeper
from trainer.recipe import Recipe
from trainer.run import Run
from trainer.rundir import RunDir
from trainer.weights import Loaded

CHECKPOINT_EVERY_S = 60.0  # what a power cut may cost; a request to stop costs nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is given beside its recipe: none of it changes the result on the same kind of machine."""

    source: str
    out: Path
    device: Device
    workers: int
    cache: Path
    strict: bool = False
    resume: bool = False
    exact: bool = False
    given_metrics: Sequence[str] = ()
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    check_stop: Callable[[], None] = lambda: None


def opened(recipe: Recipe, options: Options, team: Team, rundir: RunDir, keeper: Keeper) -> tuple[Run, Loaded | None]:
    """The run, and which weights it starts from. Raises TrainerError."""
    given = tuple((reference, metrics.own(reference)) for reference in options.given_metrics)
    samples = data.find(options.source or recipe.data.source, recipe.data)
    metrics.check(recipe.metrics, samples.multi_label)
    randomness.seed_everything(recipe.seed)
    network = models.build(recipe.arch, len(samples.classes), recipe.head)
    models.check(network, recipe)
    loaded = weights.load_pretrained(network, recipe.pretrained) if recipe.pretrained else None
    network.module.to(team.device)

    # Decoded once, at the largest size that any stage asks for, with room to zoom in.
    decoded_px = round(max(stage.size_px for stage in recipe.stages) * recipe.augmentation.zoom_max)
    decoded: dict[str, Pixels] = {}
    lost: list[Unreadable] = []
    with team.lead_first():
        for name, part in samples.parts.items():
            decoded[name], unreadable = pixels.load(
                part, len(samples.classes), samples.multi_label, decoded_px, options.cache, options.workers, keeper.beat
            )
            lost += unreadable
    report.found(rundir, samples, lost)
    if lost and options.strict:
        raise BrokenImages(f"{len(lost)} images cannot be decoded", "Repair or remove them, or leave out --strict")
    if not samples.multi_label:
        _check_classes(samples.classes, decoded["train"], "training")
        _check_classes(samples.classes, decoded["valid"], "validation")
    report.duplicates(rundir, decoded)
    run = Run(
        recipe=recipe,
        rundir=rundir,
        keeper=keeper,
        device=options.device,
        team=team,
        network=network,
        classes=samples.classes,
        multi_label=samples.multi_label,
        labels_why=samples.why,
        train=decoded["train"],
        valid=decoded["valid"],
        test=decoded.get("test"),
        unreadable=tuple(lost),
        decoded_px=decoded_px,
        workers=options.workers,
        cache=options.cache,
        given_metrics=given,
    )
    return run, loaded


def _check_classes(classes: Sequence[str], part: Pixels, name: str) -> None:
    """A class may have lost all its images to damage."""
    present = {label for labels in part.labels for label in labels}
    if gone := [name for label, name in enumerate(classes) if label not in present]:
        raise DataRefused(f"No {name} image of {', '.join(gone)} can be decoded", "Repair the files named above")
