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

from trainer.augmentation import Augmentation
from trainer.errors import RecipeRefused
from trainer.knobs import NUMBER, SWITCH, TEXT, WHOLE, Checked, closest, knob
from trainer.stage import STAGE_KEYS, Stage

SHIPPED = Path(__file__).parent / "recipes"
METRICS = ("top_3", "top_5", "f1", "f2", "precision", "recall", "auc", "log_loss")  # `metrics.py` has what they mean
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue of the training set, as torchvision's weights expect
IMAGENET_STD = (0.229, 0.224, 0.225)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> "Recipe":
    """The shipped recipe of that name, or the one in that TOML file, with `key=value` overrides applied.

    `size_px=64` is set in every stage, `stages.0.size_px=64` in the first one, `data.valid_fraction=0.1` in that table.
    Raises RecipeRefused.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else SHIPPED / f"{name_or_path}.toml"
    try:
        table = _toml(path.read_text(encoding="utf-8"))
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
class DataOptions(Checked):
    """Where the images come from when --data does not say, how they are split and normalised."""

    source: str = knob(TEXT, "", "", "a built-in set's name; empty: --data is needed")
    labels_csv: str = knob(
        TEXT, "", "", "a CSV file in the data folder: image, labels split on spaces; empty: class folders"
    )
    labels: str = knob(
        TEXT, "infer", "", "how many an image has; the run says what it inferred", one_of=("infer", "single", "multi")
    )
    valid_fraction: float = knob(
        NUMBER, 0.2, "of the images", "where no train/ and valid/ folders say it", least=0.01, most=0.9
    )
    test_fraction: float = knob(NUMBER, 0.0, "of the images", "kept apart for the final score", least=0, most=0.9)
    folds: int = knob(WHOLE, 0, "parts", "above 0: the validation part is one of so many, not valid_fraction", least=0)
    fold: int = knob(WHOLE, 0, "", "which of the folds, counted from 0", least=0)
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
        if self.folds == 1 or self.fold >= max(self.folds, 1):
            what = f"[data]: there is no fold {self.fold} of {self.folds}"
            raise RecipeRefused(what, "Give folds = 2 or more, and fold from 0 to one less")
        if self.valid_fraction + self.test_fraction >= 1:
            raise RecipeRefused(
                "[data]: valid_fraction and test_fraction leave nothing to train on", "Correct the recipe"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Checked):
    """Everything that decides the result, but the images and the machine."""

    name: str = knob(TEXT, "recipe", "", "the file's name unless it says otherwise")
    about: str = knob(TEXT, "", "", "one line for `python -m trainer recipes`")
    arch: str = knob(
        TEXT, "resnet34", "", "fast.ai's first model; any torchvision classifier, timm/NAME, digits_net or photo_net"
    )
    pretrained: bool | str = knob(
        SWITCH, False, "", "true: torchvision's ImageNet weights; a path: that safetensors file", also=(TEXT,)
    )
    head: str = knob(
        TEXT, "concat_pool", "", "fast.ai 0.7's; linear: one layer on the average", one_of=("concat_pool", "linear")
    )
    seed: int = knob(WHOLE, 0, "", "initial weights, order, augmentation and dropout follow from it", least=0)
    tta: int = knob(
        WHOLE, 0, "views", "augmented views averaged with the plain one at the end; fast.ai 0.7: 4", least=0, most=1000
    )
    threshold: float | str = knob(
        NUMBER,
        0.5,
        "",
        'multi-label: the probability from which a label is given; "tune": the best F2 on the validation part',
        least=0,
        most=1,
        words=("tune",),
    )
    metrics: tuple[str, ...] = knob(
        TEXT, (), "", "shown beside loss and accuracy, over the whole part", several=True, one_of=METRICS
    )
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


def _made(kind: Any, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise RecipeRefused(f"{where} must be a table, not {table!r}", "Correct the recipe")
    known = {spec.name for spec in fields(kind)}
    for key in table:
        if key not in known:
            hint = closest(key, known | STAGE_KEYS if kind is Recipe else known)
            raise RecipeRefused(f"{where} has no key {key!r}{hint}", f"The keys are {', '.join(sorted(known))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})


def _toml(text: str) -> dict[str, Any]:
    # Imported here: a network that has been trained is used without any recipe, and without tomli.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeRefused(f"--set {override!r} has no value", "Write --set key=value")
    try:
        value = _toml(f"value = {text}")["value"]
    except ValueError:
        value = text  # a bare word: --set arch=resnet18
    *path, last = key.split(".")
    if not path and last in STAGE_KEYS and last != "name":
        for stage in table.get("stages", []):
            _put(stage, last, value)
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
    _put(place, last, value)


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    """A stage's length is said in one way: what is put there takes the place of the other."""
    if key == "epochs":
        for other in ("cycles", "cycle_len", "cycle_mult"):
            table.pop(other, None)
    elif key in ("cycles", "cycle_len", "cycle_mult"):
        table.pop("epochs", None)
    table[key] = value
