"""A recipe: what to train, on what, and in which stages, as frozen values read from TOML and checked whole on creation.

Nothing in a recipe names code to import (law 8): networks and data sets are looked up in fixed tables.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trainer import schedules
from trainer.errors import RecipeRefused
from trainer.knobs import NUMBER, SWITCH, TEXT, WHOLE, Checked, closest, knob

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "recipes"
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue of the training set, as torchvision's weights expect
IMAGENET_STD = (0.229, 0.224, 0.225)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> "Recipe":
    """The shipped recipe of that name, or the one in that TOML file, with `key=value` overrides applied.

    `size_px=64` is set in every stage, `stages.0.size_px=64` in the first one, `data.valid_fraction=0.1` in that table.
    Raises RecipeRefused.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else SHIPPED / f"{name_or_path}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = closest(name_or_path, [recipe.stem for recipe in shipped()])
        raise RecipeRefused(
            f"There is no recipe {name_or_path!r}{hint}", "See them with: python -m trainer recipes"
        ) from None
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise RecipeRefused(f"{path} cannot be read as TOML: {error}", "Correct the file") from error
    for override in overrides:
        _override(table, override)
    return from_table({"name": path.stem} | table)


def shipped() -> list[Path]:
    """The TOML files of the recipes that come with the package, by name."""
    return sorted(SHIPPED.glob("*.toml"))


def from_table(table: dict[str, Any]) -> "Recipe":
    """The recipe that a TOML table describes. A stage's key at top level holds for every stage that does not set it."""
    shared = {key: value for key, value in table.items() if key in STAGE_KEYS and key != "name"}
    rest = {key: value for key, value in table.items() if key not in shared}
    if not isinstance(rest.get("stages"), list):
        raise RecipeRefused("The recipe has no [[stages]]", "Add at least one, with a name and epochs")
    rest["stages"] = tuple(
        _made(Stage, shared | stage if isinstance(stage, dict) else stage, f"stages.{index}")
        for index, stage in enumerate(rest["stages"])
    )
    for key, part in (("data", DataOptions), ("augmentation", Augmentation)):
        rest[key] = _made(part, rest.get(key, {}), key)
    recipe: Recipe = _made(Recipe, rest, "recipe")
    return recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation(Checked):
    """How a training image is varied each time it is shown. The defaults suit photographs taken from the side."""

    flip: bool = knob(SWITCH, True, "", "a mirrored photograph is as likely; not so for digits and text")
    rotate_degrees: float = knob(NUMBER, 10.0, "degrees", "fast.ai 0.7: 3 images in 4, either way", least=0, most=45)
    zoom_max: float = knob(
        NUMBER, 1.1, "×", "fast.ai 0.7: 3 images in 4 are enlarged, at most this much", least=1, most=4
    )
    lighting: float = knob(NUMBER, 0.05, "of full range", "fast.ai 0.7: brightness and contrast", least=0, most=0.9)

    def where(self) -> str:
        return "[augmentation]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions(Checked):
    """Where the images come from when --data does not say, how they are split and normalised."""

    source: str = knob(TEXT, "", "", "a built-in set's name; empty: --data is needed")
    valid_fraction: float = knob(NUMBER, 0.2, "", "where a folder has no train/ and valid/", least=0.01, most=0.9)
    split_seed: int = knob(WHOLE, 0, "", "apart from seed: runs with other seeds then share their images", least=0)
    mean: tuple[float, ...] = knob(
        NUMBER,
        IMAGENET_MEAN,
        "of full range",
        "red, green, blue; ImageNet weights expect these",
        least=0,
        most=1,
        several=True,
    )
    std: tuple[float, ...] = knob(
        NUMBER,
        IMAGENET_STD,
        "of full range",
        "red, green, blue; ImageNet weights expect these",
        least=1e-3,
        most=1,
        several=True,
    )

    def where(self) -> str:
        return "[data]"

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3:
                raise RecipeRefused(f"[data]: {name} must be three numbers, not {value!r}", "Correct the recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Checked):
    """One stretch of training: all is held constant but the learning rate, which falls along a cosine in each cycle."""

    name: str = knob(TEXT, "train", "", "shown in the log and in metrics.jsonl")
    size_px: int = knob(
        WHOLE, 224, "px", "the square's side; what ImageNet weights were trained on", least=8, most=4096
    )
    freeze_to: int = knob(WHOLE, 0, "group", "layer groups before this one are frozen: 0 none, -1 all but the head")
    augment: bool = knob(SWITCH, True, "", "vary the training images as [augmentation] says")
    epochs: int | None = knob(WHOLE, None, "epochs", "one cycle this long: short for cycle_len alone", least=1)
    cycles: int = knob(WHOLE, 1, "cycles", "each starts at the highest rate again (SGDR)", least=1)
    cycle_len: int = knob(WHOLE, 1, "epochs", "of the first cycle", least=1)
    cycle_mult: int = knob(WHOLE, 1, "×", "each cycle is this many times as long as the one before", least=1)
    lr: float | tuple[float, ...] = knob(
        NUMBER, 0.01, "", "the head's highest rate, or a list: one per layer group", least=1e-12, most=100, several=True
    )
    spread: float = knob(
        NUMBER, 1.0, "×", "the rate falls by this per earlier layer group: 10 for photographs, else 3", least=1
    )
    batch_size: int = knob(WHOLE, 64, "images", "fast.ai 0.7; BatchNorm needs two", least=2)
    optimizer: str = knob(TEXT, "sgd", "", "fast.ai 0.7; adamw needs less tuning from scratch", one_of=("sgd", "adamw"))
    momentum: float = knob(NUMBER, 0.9, "", "fast.ai 0.7; for adamw its first beta", least=0, most=0.999)
    weight_decay: float = knob(NUMBER, 0.0, "", "fast.ai 0.7; never on biases and norm weights", least=0, most=1)

    def where(self) -> str:
        return f"stage {self.name!r}"

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.epochs is not None and (self.cycles, self.cycle_len, self.cycle_mult) != (1, 1, 1):
            what = f"Stage {self.name!r} says its length twice: epochs, and cycles, cycle_len or cycle_mult"
            raise RecipeRefused(what, "Keep one of them")

    @property
    def first_cycle_epochs(self) -> int:
        return self.epochs or self.cycle_len

    @property
    def total_epochs(self) -> int:
        return schedules.total_epochs(self.cycles, self.first_cycle_epochs, self.cycle_mult)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Checked):
    """Everything that decides the result, but the images and the machine."""

    name: str = knob(TEXT, "recipe", "", "the file's name unless it says otherwise")
    about: str = knob(TEXT, "", "", "one line for `python -m trainer recipes`")
    arch: str = knob(TEXT, "resnet34", "", "fast.ai's first model; any torchvision classifier, digits_net or photo_net")
    pretrained: bool | str = knob(
        SWITCH, False, "", "true: torchvision's ImageNet weights; a path: that safetensors file", also=(TEXT,)
    )
    seed: int = knob(WHOLE, 0, "", "initial weights, order, augmentation and dropout follow from it", least=0)
    data: DataOptions = field(default_factory=DataOptions)
    augmentation: Augmentation = field(default_factory=Augmentation)
    stages: tuple[Stage, ...] = ()

    def where(self) -> str:
        return "recipe"

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not self.stages:
            raise RecipeRefused("The recipe has no [[stages]]", "Add at least one, with a name and epochs")

    @property
    def total_epochs(self) -> int:
        return sum(stage.total_epochs for stage in self.stages)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


STAGE_KEYS = frozenset(spec.name for spec in fields(Stage))


def _made(kind: Any, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise RecipeRefused(f"{where} must be a table, not {table!r}", "Correct the recipe")
    known = {spec.name for spec in fields(kind)}
    for key in table:
        if key not in known:
            hint = closest(key, known | STAGE_KEYS if kind is Recipe else known)
            raise RecipeRefused(f"{where} has no key {key!r}{hint}", f"The keys are {', '.join(sorted(known))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeRefused(f"--set {override!r} has no value", "Write --set key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text  # a bare word: --set arch=resnet18
    *path, last = key.split(".")
    if not path and last in STAGE_KEYS and last != "name":
        for stage in table.get("stages", []):
            stage[last] = value
        return
    place: Any = table
    for step in path:
        try:
            place = place[int(step)] if isinstance(place, list) else place.setdefault(step, {})
        except (ValueError, IndexError, AttributeError):
            raise RecipeRefused(
                f"--set {key}: the recipe has no {step!r} there", "Write --set stages.0.epochs=3"
            ) from None
    if not isinstance(place, dict):
        raise RecipeRefused(f"--set {key} does not name one value", "Write --set stages.0.epochs=3")
    place[last] = value
