import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from trainer import recipe
from trainer.errors import RecipeRefused

Trainer = Callable[..., tuple[int, str, str]]


def table(**stage: object) -> dict[str, object]:
    return {"arch": "digits_net", "stages": [{"name": "only", "epochs": 1, **stage}]}


@pytest.mark.parametrize("name", [path.stem for path in recipe.shipped()])
def test_a_shipped_recipe_is_listed_and_described(trainer: Trainer, name: str) -> None:
    assert name in trainer("recipes")[1]
    code, out, _ = trainer("describe", name)
    assert code == 0
    for stage in recipe.load(name).stages:
        assert f"{stage.name}:" in out


def test_describe_shows_the_epochs_of_every_cycle(trainer: Trainer) -> None:
    out = trainer("describe", "best_classifier", "--images", 640)[1]
    assert "at most 12 epochs" in out
    assert "epoch 3, 10 steps: lr 0.01, falling" in out
    assert "the learning rate is looked for over one epoch; rule: minimum" in out
    assert "epochs 4–7, 40 steps: lr as found in the head, 10 × less per earlier group" in out
    assert "with 4 augmented views" in out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eposhs": 3}, "stages.0 has no key 'eposhs' (did you mean 'epochs'?)"),
        ({"lr": 500}, "lr is 500; it must be between 1e-12 and 100"),
        ({"lr": [0.1, -0.1]}, "lr is -0.1"),
        ({"size_px": 0}, "stage 'only': size_px is 0 px; it must be between 8 and 4096"),
        ({"size_px": "64"}, "size_px must be a whole number, not '64'"),
        ({"epochs": True}, "epochs must be a whole number, not True"),
        ({"momentum": float("nan")}, "momentum is nan"),
        ({"optimizer": "adam"}, "did you mean 'adamw'?"),
        ({"cycles": 2}, "says its length twice"),
        ({"lr": "fnid"}, "lr must be a number or 'find', not 'fnid'"),
        ({"precompute": True}, "precomputes activations, but trains more than the head"),
        ({"precompute": True, "freeze_to": -1, "mixup": 0.2}, "mixes images that it never shows"),
        ({"until_overfitting": True}, "has one cycle, so it can't end before over-fitting"),
        ({"schedule": "one-cycle"}, "did you mean 'one_cycle'?"),
    ],
)
def test_a_wrong_stage_is_refused_by_name(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeRefused) as refused:
        recipe.from_table(table(**change))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"sede": 1}, "did you mean 'seed'?"),
        ({"seed": -1}, "seed is -1"),
        ({"data": {"valid_fraction": 1.5}}, "valid_fraction is 1.5"),
        ({"data": {"mean": [0.5]}}, "mean must be three numbers"),
        ({"augmentation": {"flop": True}}, "did you mean 'flip'?"),
        ({"augmentation": 3}, "augmentation must be a table"),
        ({"stages": []}, "has no [[stages]]"),
        ({"pretrained": 3}, "pretrained must be true or false or a text"),
    ],
)
def test_a_wrong_table_is_refused_by_name(part: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeRefused) as refused:
        recipe.from_table(table() | part)
    assert sentence in str(refused.value)


def test_a_stage_key_at_top_level_holds_for_the_stages_that_do_not_set_it() -> None:
    made = recipe.from_table({"size_px": 64, "stages": [{"epochs": 1}, {"epochs": 1, "size_px": 96}]})
    assert [stage.size_px for stage in made.stages] == [64, 96]


def test_an_override_changes_one_stage_every_stage_or_a_table() -> None:
    overrides = ["size_px=64", "stages.0.epochs=3", "data.valid_fraction=0.5", "arch=resnet18"]
    made = recipe.load("best_classifier", overrides)
    assert [stage.size_px for stage in made.stages] == [64, 64, 64]
    assert made.stages[0].total_epochs == 3  # in place of its two cycles
    assert made.data.valid_fraction == 0.5
    assert made.arch == "resnet18"


@pytest.mark.parametrize(
    "override", ["stages.9.epochs=1", "stages.x.epochs=1", "stages.0=1", "seed", "seed.x=1", "nope=1"]
)
def test_an_override_of_nothing_is_refused(override: str) -> None:
    with pytest.raises(RecipeRefused):
        recipe.load("digits", [override])


def test_an_unknown_recipe_is_refused_with_the_closest_name(trainer: Trainer) -> None:
    code, out, err = trainer("describe", "digit")
    assert (code, out) == (20, "")
    assert (
        err == "error: There is no recipe 'digit' (did you mean 'digits'?). See them with: python -m trainer recipes.\n"
    )


def test_a_file_that_is_not_toml_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("arch = ")
    assert trainer("describe", broken)[0] == 20


def test_two_recipes_that_train_alike_have_one_digest() -> None:
    assert recipe.load("digits").sha256 == recipe.load("digits", ["seed=0"]).sha256
    assert recipe.load("digits").sha256 != recipe.load("digits", ["seed=1"]).sha256


def test_recipes_are_listed_and_described_without_torch() -> None:
    code = (
        "import sys, trainer, trainer.recipe, trainer.schedules, trainer.__main__ as cli;"
        "cli.main(['recipes']); cli.main(['describe', 'digits']);"
        "assert not {'torch', 'numpy', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(recipe.__file__).parents[1], capture_output=True)


@pytest.mark.parametrize("part", [recipe.Recipe, recipe.DataOptions, recipe.Augmentation, recipe.Stage])
def test_the_manual_has_a_row_for_every_knob(part: type) -> None:
    manual = (Path(recipe.__file__).parents[1] / "docs" / "trainer.md").read_text()
    for spec in fields(part):
        if spec.metadata:
            assert f"| `{spec.name}` |" in manual
            assert spec.metadata["reason"] in manual
