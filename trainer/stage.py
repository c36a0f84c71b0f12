"""A stage of a recipe: every knob with its default, unit and reason, checked on creation. Needs no torch."""

from dataclasses import dataclass, fields

from trainer import schedules
from trainer.errors import RecipeRefused
from trainer.knobs import NUMBER, SWITCH, TEXT, WHOLE, Checked, knob


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Checked):
    """One stretch of training: all is held constant but the learning rate, which is a function of progress alone."""

    name: str = knob(TEXT, "train", "", "shown in the log and in metrics.jsonl")
    size_px: int = knob(
        WHOLE, 224, "px", "the square's side; what ImageNet weights were trained on", least=8, most=4096
    )
    freeze_to: int = knob(WHOLE, 0, "group", "layer groups before this one are frozen: 0 none, -1 all but the head")
    freeze_norm: bool = knob(
        SWITCH, False, "", "BatchNorm before the head keeps its statistics where it learns: fast.ai 0.7's bn_freeze"
    )
    precompute: bool = knob(
        SWITCH, False, "", "train the head on activations computed once: needs freeze_to = -1; nothing is augmented"
    )
    augment: bool = knob(SWITCH, True, "", "vary the training images as [augmentation] says")
    epochs: int | None = knob(WHOLE, None, "epochs", "one cycle this long: short for cycle_len alone", least=1)
    cycles: int = knob(WHOLE, 1, "cycles", "each starts at the highest rate again (SGDR)", least=1)
    cycle_len: int = knob(WHOLE, 1, "epochs", "of the first cycle", least=1)
    cycle_mult: int = knob(WHOLE, 1, "×", "each cycle is this many times as long as the one before", least=1)
    schedule: str = knob(
        TEXT, "sgdr", "", "fast.ai 0.7; one_cycle rises first and falls further", one_of=("sgdr", "one_cycle")
    )
    until_overfitting: bool = knob(
        SWITCH, False, "", "end after a cycle whose validation loss rose while its training loss fell; keep the best"
    )
    snapshots: bool = knob(SWITCH, False, "", "keep each cycle's end, and predict with all of them together")
    lr: float | tuple[float, ...] | str = knob(
        NUMBER,
        0.01,
        "",
        "the head's highest rate; a list: one per layer group; find: by the learning-rate finder",
        least=1e-12,
        most=100,
        several=True,
        words=("find",),
    )
    find: str = knob(
        TEXT,
        "minimum",
        "",
        "which suggestion is taken: a tenth of the last rate at the lowest loss, or the middle of the fall",
        one_of=("minimum", "valley"),
    )
    find_batches: int = knob(
        WHOLE, 0, "batches", "of the finder's sweep; 0: one epoch, as in fast.ai 0.7, but at least 50", least=0
    )
    spread: float = knob(
        NUMBER, 1.0, "×", "the rate falls by this per earlier layer group: 10 for photographs, else 3", least=1
    )
    batch_size: int = knob(WHOLE, 64, "images", "fast.ai 0.7; BatchNorm needs two", least=2)
    accumulate: int = knob(WHOLE, 1, "batches", "per step: a larger batch than memory holds", least=1)
    optimizer: str = knob(TEXT, "sgd", "", "fast.ai 0.7; adamw needs less tuning from scratch", one_of=("sgd", "adamw"))
    momentum: float = knob(NUMBER, 0.9, "", "fast.ai 0.7; for adamw its first beta", least=0, most=0.999)
    weight_decay: float = knob(NUMBER, 0.0, "", "fast.ai 0.7; never on biases and norm weights", least=0, most=1)
    clip: float = knob(NUMBER, 0.0, "", "the gradient's norm is cut to this; 0: never, as in fast.ai 0.7", least=0)
    class_weights: str = knob(
        TEXT, "none", "", "balanced: a rare class's images count for more", one_of=("none", "balanced")
    )
    label_smoothing: float = knob(NUMBER, 0.0, "", "fast.ai 0.7 has none; 0.1 is usual", least=0, most=0.9)
    mixup: float = knob(NUMBER, 0.0, "", "alpha of arXiv:1710.09412; 0: none; 0.2 for long training", least=0, most=10)
    ema: float = knob(
        NUMBER,
        0.0,
        "per step",
        "decay of the weights' average, which is then what is kept; 0: none",
        least=0,
        most=1,
    )
    precision: str = knob(
        TEXT,
        "auto",
        "",
        "auto: the fastest here by a short measurement, remembered for this machine",
        one_of=("auto", "fp32", "bf16", "fp16"),
    )

    def where(self) -> str:
        return f"stage {self.name!r}"

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.epochs is not None and (self.cycles, self.cycle_len, self.cycle_mult) != (1, 1, 1):
            what = f"Stage {self.name!r} says its length twice: epochs, and cycles, cycle_len or cycle_mult"
            raise RecipeRefused(what, "Keep one of them")
        if self.precompute and self.freeze_to != -1:
            what = f"Stage {self.name!r} precomputes activations, but trains more than the head"
            raise RecipeRefused(what, "Write freeze_to = -1, or leave out precompute")
        if self.precompute and self.mixup:
            what = f"Stage {self.name!r} mixes images that it never shows: it precomputes their activations"
            raise RecipeRefused(what, "Leave out mixup or precompute")
        if self.until_overfitting and self.cycles == 1:
            what = f"Stage {self.name!r} has one cycle, so it can't end before over-fitting"
            raise RecipeRefused(what, "Write cycles = 2 or more: the most that it may take")

    @property
    def first_cycle_epochs(self) -> int:
        return self.epochs or self.cycle_len

    @property
    def total_epochs(self) -> int:
        """The epochs of all its cycles; until over-fitting, the most that it may take."""
        return schedules.total_epochs(self.cycles, self.first_cycle_epochs, self.cycle_mult)

    def cycle_ends(self) -> tuple[int, ...]:
        """The number of epochs after which each cycle is over."""
        starts = schedules.cycle_starts(self.cycles, self.first_cycle_epochs, self.cycle_mult)
        return (*starts[1:], self.total_epochs)


STAGE_KEYS = frozenset(spec.name for spec in fields(Stage))
