"""Every score against scikit-learn's, and how scores are asked for, given and kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor

from tests.trainer.generated import SETS
from trainer import engine, metrics, models
from trainer.data.batches import Batches
from trainer.distributed import Team
from trainer.engine import Answers
from trainer.errors import RecipeRefused
from trainer.recipe import METRICS

Trainer = Callable[..., tuple[int, str, str]]
Events = Callable[[Path, str], list[dict[str, Any]]]

OWN_METRICS = """
def share_sure(probabilities, targets):
    return (probabilities.max(dim=1).values > 0.6).float().mean()

def images(probabilities, targets):
    return len(targets)

NUMBER = 3
"""


@pytest.fixture
def own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module of a person's own."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "my_scores.py").write_text(OWN_METRICS)
    monkeypatch.syspath_prepend(tmp_path / "beside")
    return "my_scores"


def single(count: int = 200, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities that are right more often than not, and targets."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (count,), generator=random)
    scores = torch.randn(count, classes, generator=random) + 1.5 * torch.nn.functional.one_hot(targets, classes)
    return scores.softmax(dim=1), targets


def several(count: int = 200, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same of any number of labels an image; some images have none."""
    random = torch.Generator().manual_seed(seed)
    targets = (torch.rand(count, classes, generator=random) < 0.3).float()
    return (torch.randn(count, classes, generator=random) + 2 * targets - 1).sigmoid(), targets


def by_sklearn(name: str, probabilities: Tensor, targets: Tensor, threshold: float) -> float:
    """The score of that name as scikit-learn computes it."""
    likely, wanted = probabilities.numpy(), targets.numpy()
    if targets.ndim == 1:
        given, labels = likely.argmax(axis=1), np.arange(likely.shape[1])
        one_hot = np.eye(likely.shape[1])[wanted]
        return float(
            {
                "accuracy": lambda: sklearn.accuracy_score(wanted, given),
                "f1": lambda: sklearn.f1_score(wanted, given, average="macro"),
                "f2": lambda: sklearn.fbeta_score(wanted, given, beta=2, average="macro"),
                "precision": lambda: sklearn.precision_score(wanted, given, average="macro"),
                "recall": lambda: sklearn.recall_score(wanted, given, average="macro"),
                "auc": lambda: sklearn.roc_auc_score(one_hot, likely, average="macro"),
                "top_3": lambda: sklearn.top_k_accuracy_score(wanted, likely, k=3, labels=labels),
                "top_5": lambda: sklearn.top_k_accuracy_score(wanted, likely, k=5, labels=labels),
                "log_loss": lambda: sklearn.log_loss(wanted, likely, labels=labels),
            }[name]()
        )
    given = likely >= threshold
    each = range(likely.shape[1])
    return float(
        {
            "accuracy": lambda: sklearn.accuracy_score(wanted, given),
            "f1": lambda: sklearn.f1_score(wanted, given, average="macro"),
            "f2": lambda: sklearn.fbeta_score(wanted, given, beta=2, average="samples", zero_division=1),
            "precision": lambda: sklearn.precision_score(wanted, given, average="macro"),
            "recall": lambda: sklearn.recall_score(wanted, given, average="macro"),
            "auc": lambda: sklearn.roc_auc_score(wanted, likely, average="macro"),
            "log_loss": lambda: np.mean([sklearn.log_loss(wanted[:, label], likely[:, label]) for label in each]),
        }[name]()
    )


def scored(name: str, probabilities: Tensor, targets: Tensor, threshold: float = 0.5) -> float:
    if name == "accuracy":
        return metrics.accuracy(probabilities, targets, threshold)
    return metrics.named(name, probabilities, targets, threshold)


def of_several() -> list[str]:
    return ["accuracy", *(name for name in METRICS if not name.startswith("top_"))]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["accuracy", *METRICS])
def test_a_score_of_one_label_an_image_is_scikit_learns(name: str, seed: int) -> None:
    made = single(seed=seed)
    assert scored(name, *made) == pytest.approx(by_sklearn(name, *made, 0.5), abs=1e-6)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.83])
@pytest.mark.parametrize("name", of_several())
def test_a_score_of_several_labels_an_image_is_scikit_learns(name: str, threshold: float) -> None:
    made = several()
    assert scored(name, *made, threshold) == pytest.approx(by_sklearn(name, *made, threshold), abs=1e-6)


@pytest.mark.parametrize("name", of_several())
def test_a_label_is_given_from_the_threshold_on_in_every_score(name: str) -> None:
    """As predictions.csv gives it: one half is what a network says that has learnt nothing."""
    targets = several()[1]
    made = torch.full_like(targets, 0.5), targets
    assert scored(name, *made, 0.5) == pytest.approx(by_sklearn(name, *made, 0.5), abs=1e-6)


@pytest.mark.parametrize("name", ["top_3", "top_5"])
def test_of_fewer_classes_than_k_every_answer_is_among_the_top_k(name: str) -> None:
    assert scored(name, *single(classes=2)) == 1.0


@pytest.mark.parametrize("name", ["f1", "f2", "precision", "recall"])
def test_a_class_that_is_neither_there_nor_given_does_not_count(name: str) -> None:
    probabilities, targets = single(classes=4)
    absent = torch.cat([probabilities, torch.zeros(len(targets), 1)], dim=1)
    assert scored(name, absent, targets) == pytest.approx(by_sklearn(name, probabilities, targets, 0.5), abs=1e-6)


def test_the_auc_leaves_out_a_class_that_no_image_of_the_part_has() -> None:
    """There is no curve for it; taken as 0 it would lower the mean of the others."""
    probabilities, targets = single(classes=4)
    probabilities = torch.cat([0.9 * probabilities, torch.full((len(targets), 1), 0.1)], dim=1)
    one_hot = np.eye(4)[targets.numpy()]
    expected = sklearn.roc_auc_score(one_hot, probabilities[:, :4].numpy(), average="macro")
    assert scored("auc", probabilities, targets) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_auc_leaves_out_a_label_that_every_image_has_or_none(value: float) -> None:
    probabilities, targets = several()
    expected = by_sklearn("auc", probabilities[:, 1:], targets[:, 1:], 0.5)
    targets[:, 0] = value
    assert scored("auc", probabilities, targets) == pytest.approx(expected, abs=1e-6)


def test_a_certainty_that_is_wrong_costs_a_finite_log_loss() -> None:
    probabilities, targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1])
    assert scored("log_loss", probabilities, targets) == pytest.approx(
        by_sklearn("log_loss", probabilities, targets, 0.5), abs=1e-5
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_threshold_is_the_one_of_the_highest_f2_nearest_to_one_half(seed: int) -> None:
    probabilities, targets = several(count=60, seed=seed)
    found = metrics.best_threshold(probabilities, targets)
    scores = {threshold: by_sklearn("f2", probabilities, targets, threshold) for threshold in np.arange(5, 96) / 100}
    equal = [threshold for threshold, score in scores.items() if score > max(scores.values()) - 1e-9]
    assert found == pytest.approx(min(equal, key=lambda threshold: abs(threshold - 0.5)))


@pytest.mark.parametrize("make", [single, several])
def test_scores_do_not_depend_on_how_the_part_was_batched(make: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """22 images in batches of 1, of 7, and all at once."""
    _, targets = make(count=22, classes=4)
    images = torch.randn(22, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    module = models.build("digits_net", 4).module
    module(images)  # so that BatchNorm has statistics of its own
    module.eval()

    def answered(size: int) -> Answers:
        def shown(parts: Sequence[Sequence[int]]) -> Batches:
            return Batches(parts, targets, lambda part: images[list(part)], workers=0)

        return engine.evaluate(module, shown, 22, size, Team(device=torch.device("cpu")), lambda: None)

    whole = answered(22)
    names = METRICS if targets.ndim == 1 else of_several()[1:]
    wanted = metrics.scores(names, (), whole.probabilities, whole.targets, 0.5)
    for size in (1, 7):
        found = answered(size)
        assert torch.equal(found.targets, targets)
        torch.testing.assert_close(found.probabilities, whole.probabilities, rtol=0, atol=1e-6)
        assert found.loss == pytest.approx(whole.loss, abs=1e-6)
        scores = metrics.scores(names, (), found.probabilities, found.targets, 0.5)
        for name in names:
            assert scores[name] == pytest.approx(wanted[name], abs=1e-6 if name == "log_loss" else 0)
        assert metrics.accuracy(found.probabilities, targets, 0.5) == metrics.accuracy(
            whole.probabilities, targets, 0.5
        )


def test_a_run_scores_the_same_whatever_its_batch_size_is_where_nothing_is_learnt(
    trainer: Trainer, events: Events, photos: Path, small_recipe: Path, tmp_path: Path
) -> None:
    found = []
    for size in (2, 7, 8):
        out = tmp_path / f"run{size}"
        changes = (f"batch_size={size}", "lr=1e-12", "freeze_to=-1", "precision=fp32", 'metrics=["f1","auc","top_3"]')
        assert fit(trainer, small_recipe, photos, out, "--set", *changes)[0] == 0
        epoch = events(out, "epoch")[0]
        found.append({"accuracy": epoch["accuracy"], **epoch["scores"]})
    assert found[0] == found[1] == found[2]


def test_a_metric_of_your_own_is_recorded_under_its_name(
    trainer: Trainer, events: Events, photos: Path, small_recipe: Path, tmp_path: Path, own_metrics: str
) -> None:
    names = [f"{own_metrics}:share_sure", f"{own_metrics}:images"]
    out = tmp_path / "run"
    given = [part for name in names for part in ("--metric", name)]
    code, said, _ = fit(trainer, small_recipe, photos, out, *given, "--set", 'metrics=["f1"]')
    assert code == 0
    (start,), epochs = events(out, "start"), events(out, "epoch")
    assert start["metrics"] == ["f1", *names]
    assert own_metrics not in json.dumps(start["recipe"])
    assert all(set(epoch["scores"]) == {"f1", *names} for epoch in epochs)
    assert {epoch["scores"][names[1]] for epoch in epochs} == {8.0}
    assert all(0 <= epoch["scores"][names[0]] <= 1 for epoch in epochs)
    assert summary_of(out)["scores"]["valid"]["plain"][names[1]] == 8.0
    assert f"{names[1]} 8.0000" in said


def test_resume_asks_for_your_own_metric_again(
    trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path, own_metrics: str
) -> None:
    out, name = tmp_path / "run", f"{own_metrics}:images"
    assert fit(trainer, small_recipe, photos, out, "--metric", name)[0] == 0
    code, _, complained = fit(trainer, small_recipe, photos, out, "--resume")
    assert code == 25
    assert name in complained
    other = fit(trainer, small_recipe, photos, out, "--resume", "--metric", f"{own_metrics}:share_sure")
    assert (other[0], name in other[2]) == (25, True)
    assert fit(trainer, small_recipe, photos, out, "--resume", "--metric", name)[0] == 0


@pytest.mark.parametrize(
    "name",
    ["my_scores:nothing", "no_such_module:f", "my_scores", ":f", "my_scores:", "my_scores:NUMBER", ".my_scores:images"],
)
def test_a_metric_that_is_not_there_is_refused_before_anything_is_trained(
    name: str, trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path, own_metrics: str
) -> None:
    out = tmp_path / "run"
    code, said, complained = fit(trainer, small_recipe, photos, out, "--metric", name)
    assert code == 20
    assert complained.startswith("error: ") and name in complained
    assert "epoch" not in said


def test_a_recipe_cannot_name_a_function(trainer: Trainer, photos: Path, small_recipe: Path, tmp_path: Path) -> None:
    code, _, complained = fit(trainer, small_recipe, photos, tmp_path / "run", "--set", 'metrics=["os:getcwd"]')
    assert code == 20
    assert "os:getcwd" in complained


@pytest.mark.parametrize("name", ["top_3", "top_5"])
def test_a_score_of_one_label_is_refused_of_several(name: str) -> None:
    with pytest.raises(RecipeRefused, match=f"{name} is no score where an image has several labels"):
        metrics.check([name], multi_label=True)


def test_a_score_that_several_labels_do_not_have_is_refused_before_anything_is_computed(
    trainer: Trainer, events: Events, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, _, complained = fit_several(trainer, tmp_path, out, 'metrics=["f2", "top_3"]')
    assert code == 20
    assert "top_3 is no score where an image has several labels" in complained
    assert not (out / "metrics.jsonl").exists() or events(out, "activations") == events(out, "epoch") == []


def test_a_threshold_is_tuned_on_the_validation_part_and_reported_on_the_test_part(
    trainer: Trainer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert fit_several(trainer, tmp_path, out)[0] == 0
    summary = summary_of(out)
    threshold = summary["threshold"]
    assert summary["selected_by"] == [f"the threshold {threshold:g}, by its F2"]
    assert (summary["scored_on"], summary["selected_on_this_set"]) == ("test", False)
    assert json.loads((out / "out" / "model.json").read_text())["threshold"] == threshold

    scores = {}
    for part, file in (("valid", "predictions.csv"), ("test", "predictions-test.csv")):
        likely, wanted = predicted(out / "out" / file, SETS["multi_label"].labels)
        scores[part] = {value: by_sklearn("f2", likely, wanted, value) for value in (threshold, 0.05, 0.5, 0.95)}
        assert summary["scores"][part]["plain"]["f2"] == pytest.approx(scores[part][threshold], abs=1e-6)
    assert scores["valid"][threshold] == max(scores["valid"].values())
    # Here the best threshold of the test part is another one: it was not looked at.
    likely, wanted = predicted(out / "out" / "predictions-test.csv", SETS["multi_label"].labels)
    best = metrics.best_threshold(likely, wanted)
    assert scores["test"][threshold] < by_sklearn("f2", likely, wanted, best)


def test_without_a_test_part_a_tuned_threshold_makes_the_score_one_selected_on_this_set(
    trainer: Trainer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, said, _ = fit_several(trainer, tmp_path, out, "data.test_fraction=0")
    assert code == 0
    summary = summary_of(out)
    assert (summary["scored_on"], summary["selected_on_this_set"]) == ("valid", True)
    assert "selected on this set" in said


def test_a_threshold_that_the_recipe_states_is_that_of_every_score(
    trainer: Trainer, events: Events, tmp_path: Path
) -> None:
    """A whole number too: to TOML, 1 and 1.0 are of two kinds."""
    out = tmp_path / "run"
    assert fit_several(trainer, tmp_path, out, "threshold=0", "metrics=['f2']")[0] == 0
    summary = summary_of(out)
    assert (summary["threshold"], summary["selected_by"]) == (0.0, [])
    # The last epoch and the final pass see the same network and the same images.
    assert events(out, "epoch")[-1]["scores"]["f2"] == pytest.approx(summary["scores"]["valid"]["plain"]["f2"])


def fit(run: Trainer, recipe: Path | str, source: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return run("fit", recipe, "--data", source, "--out", out, "--cache", out.parent / "cache", "--allow-cpu", *more)


def fit_several(run: Trainer, tmp_path: Path, out: Path, *changes: str) -> tuple[int, str, str]:
    """A second of the shipped multi-label recipe."""
    SETS["multi_label"].write(tmp_path / "pictures", 120, seed=1)
    small = ("arch=photo_net", "pretrained=false", "size_px=16", "batch_size=16", "precision=fp32", "tta=0", "cycles=1")
    return fit(run, "multi_label", tmp_path / "pictures", out, "--set", *small, "stages.1.cycle_mult=1", *changes)


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "out" / "summary.json").read_text())
    return summary


def predicted(path: Path, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Probabilities and targets (image, label) as a file of predictions has them."""
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    columns = [header.index(label) for label in labels]
    likely = torch.tensor([[float(row[column]) for column in columns] for row in rows])
    return likely, torch.tensor([[float(label in row[1].split()) for label in labels] for row in rows])
