"""The learning-rate finder: its sweep, where it ends, what it suggests, and that nothing is left of it."""

import csv
import itertools
import json
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import checkpoint, models, recipe
from trainer.decode import decode
from trainer.device import choose
from trainer.errors import Stopped
from trainer.fit import fit
from trainer.lr_finder import curve_of, is_over, rate, smoothed, suggestions
from trainer.opening import Options
from trainer.plots import finder_png

Trainer = Callable[..., tuple[int, str, str]]
Events = Callable[[Path, str], list[dict[str, Any]]]

STAGE = """
name = "sweeping"
arch = "digits_net"
size_px = 16
batch_size = 8
precision = "fp32"

[[stages]]
name = "one"
epochs = 1
"""
HEAD = STAGE + "freeze_to = -1\n"
PRECOMPUTED = HEAD + "precompute = true\n"


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a recipe to a file of its own."""
    numbers = itertools.count()

    def write(text: str) -> Path:
        path = tmp_path / f"recipe-{next(numbers)}.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Weights whose features are so large that the loss is no number after a few batches of a sweep."""
    torch.manual_seed(0)
    tensors = models.build("digits_net", 2).module.state_dict()
    tensors["body.11.weight"] = torch.full_like(tensors["body.11.weight"], 1e22)  # the last BatchNorm's scales
    path = tmp_path / "overflowing.safetensors"
    save_file(tensors, path)
    return path


def run(trainer: Trainer, chosen: Path, photos: Path, out: Path, *more: object) -> None:
    code, _, complained = trainer("fit", chosen, "--data", photos, "--out", out, "--allow-cpu", *more)
    assert (code, complained) == (0, "")


def weights_of(out: Path) -> bytes:
    return (out / "out" / "weights.safetensors").read_bytes()


def curve_in(out: Path, name: str = "lr_finder-0") -> list[tuple[float, float]]:
    rows = list(csv.DictReader((out / "out" / f"{name}.csv").read_text().splitlines()))
    return [(float(row["lr"]), float(row["loss"])) for row in rows]


def test_the_sweep_multiplies_the_rate_by_as_much_at_every_batch() -> None:
    rates = [rate(batch, 100) for batch in range(100)]
    assert (rates[0], rates[-1]) == (pytest.approx(1e-5), pytest.approx(10))
    assert [after / before for before, after in itertools.pairwise(rates)] == pytest.approx([1e6 ** (1 / 99)] * 99)


def test_a_sweep_of_one_batch_is_at_the_lowest_rate() -> None:
    assert rate(0, 1) == pytest.approx(1e-5)


@pytest.mark.parametrize("count", [1, 10, 20, 50, 1000])
def test_a_flat_loss_stays_what_it_is_when_smoothed(count: int) -> None:
    assert smoothed([0.7] * count, count) == pytest.approx([0.7] * count)


def test_a_long_sweep_is_smoothed_over_a_twentieth_and_a_short_one_not_at_all() -> None:
    spike = [1.0] * 500 + [2.0]
    assert smoothed(spike, 1000)[-1] == pytest.approx(1 + 0.02, abs=1e-3)
    assert smoothed([1.0, 2.0, 3.0], 20) == [1.0, 2.0, 3.0]


def test_a_sweep_ends_at_more_than_four_times_the_best_loss() -> None:
    falling = [1.0] * 10 + [0.5]
    assert not is_over([*falling, 2.0], 100)
    assert is_over([*falling, 2.01], 100)


def test_a_lucky_first_batch_does_not_end_a_sweep() -> None:
    assert not is_over([0.01, 1.0], 100)
    assert not is_over([0.01] + [1.0] * 9, 100)
    assert is_over([0.01] + [1.0] * 10, 100)


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_a_sweep_at_once(last: float) -> None:
    assert is_over([1.0, last], 100)


def at(losses: Sequence[float]) -> dict[str, float]:
    """What is suggested for losses at rates of 1e-5, 1e-4 …"""
    return suggestions([10.0 ** (power - 5) for power in range(len(losses))], losses)


def test_a_single_dip_suggests_a_tenth_of_its_rate_and_the_middle_of_its_slope() -> None:
    found = at([1.0, 0.99, 0.8, 0.6, 0.3, 0.9, 4.0])
    assert found == {"minimum": pytest.approx(1e-2), "valley": pytest.approx(1e-3)}


def test_of_a_flat_bottom_the_minimum_is_its_last_rate_above_the_lowest_by_a_tenth_of_the_first() -> None:
    assert at([1.0, 0.5, 0.505, 0.59, 0.61, 2.0])["minimum"] == pytest.approx(1e-3)


def test_hard_and_easy_batches_do_not_show_in_the_curve() -> None:
    hard_and_easy = [0.007, 0.4, 0.02, 0.3, 0.05] * 10
    assert curve_of(hard_and_easy, hard_and_easy, 50) == pytest.approx([0.1554] * 50)
    assert not any(is_over(curve_of(hard_and_easy[:n], hard_and_easy[:n], 50), 50) for n in range(51))
    # What the sweep itself does shows as much as ever.
    risen = [*hard_and_easy[:-1], 3.0]
    assert is_over(curve_of(risen, hard_and_easy, 50), 50)


def test_a_falling_curve_suggests_its_middle_and_a_tenth_of_its_end() -> None:
    assert at([1.0, 0.8, 0.6, 0.4, 0.2]) == {"minimum": pytest.approx(1e-2), "valley": pytest.approx(1e-3)}


def test_the_longest_fall_may_be_interrupted() -> None:
    # From 1e-5 to 1e-1; the spike at 1e-3 belongs to no fall, but lies in the middle of this one.
    assert at([0.9, 0.8, 1.5, 0.7, 0.5, 0.95])["valley"] == pytest.approx(1e-3)


def test_a_tail_of_no_numbers_counts_for_nothing() -> None:
    falling = [1.0, 0.8, 0.6, 0.9]
    assert at([*falling, math.inf, math.nan]) == at(falling)


def test_two_points_suffice_and_fewer_suggest_nothing() -> None:
    assert at([1.0, 0.5]) == {"minimum": pytest.approx(1e-5), "valley": pytest.approx(1e-5)}
    assert at([1.0]) == at([]) == at([math.nan, math.nan]) == at([1.0, math.nan]) == {}


def test_a_rising_curve_suggests_no_rate_at_which_the_loss_has_risen() -> None:
    found = at([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    assert found["minimum"] == pytest.approx(1e-6)
    assert found["valley"] == pytest.approx(1e-5)


def test_a_flat_curve_suggests_a_rate_that_was_tried() -> None:
    found = at([0.7] * 6)
    assert 1e-6 <= found["minimum"] <= 1e-1
    assert 1e-5 <= found["valley"] <= 1


@pytest.mark.parametrize(
    "losses",
    [[0.7] * 6, [0.0] * 6, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2], [1.0, 0.5, 0.3, 4.0, math.inf, math.nan], [1.0, 0.5]],
    ids=["flat", "zero", "rising", "no number at the end", "two points"],
)
def test_every_curve_can_be_drawn(losses: list[float], tmp_path: Path) -> None:
    rates = [10.0 ** (power - 5) for power in range(len(losses))]
    (tmp_path / "curve.png").write_bytes(finder_png("A curve", rates, losses, suggestions(rates, losses), "minimum"))
    assert decode(tmp_path / "curve.png").shape == (3, 540, 840)


def same_with_the_number(
    trainer: Trainer,
    events: Events,
    recipe_of: Callable[[str], Path],
    photos: Path,
    out: Path,
    text: str,
    *more: object,
) -> dict[str, Any]:
    """Fits with the finder and with the rate that it found: the same bits? The finder's event."""
    run(trainer, recipe_of(text + 'lr = "find"\n'), photos, out / "found", *more)
    [found] = events(out / "found", "finder")
    run(trainer, recipe_of(f"{text}lr = {found['lr']!r}\n"), photos, out / "given", *more)
    assert weights_of(out / "found") == weights_of(out / "given")
    assert events(out / "given", "finder") == []
    run(trainer, recipe_of(f"{text}lr = {found['lr'] / 2!r}\n"), photos, out / "other", *more)
    assert weights_of(out / "other") != weights_of(out / "given")
    return found


@pytest.mark.parametrize("text", [STAGE, HEAD, PRECOMPUTED], ids=["all layers", "head", "precomputed"])
def test_a_sweep_leaves_no_trace_in_the_epoch_that_follows(
    trainer: Trainer, events: Events, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path, text: str
) -> None:
    same_with_the_number(trainer, events, recipe_of, photos, tmp_path, text)


def test_a_sweep_with_every_option_leaves_no_trace(
    trainer: Trainer, events: Events, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    options = 'optimizer = "adamw"\nema = 0.8\nmixup = 0.3\nclip = 1.0\nbatch_size = 4\naccumulate = 2\nspread = 3\n'
    text = STAGE.replace("batch_size = 8\n", "") + options
    same_with_the_number(trainer, events, recipe_of, photos, tmp_path, text)


def test_a_whole_sweep_leaves_no_trace(
    trainer: Trainer, events: Events, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    found = same_with_the_number(trainer, events, recipe_of, photos, tmp_path, HEAD + "find_batches = 7\nclip = 1e-6\n")
    assert found["batches"] == len(curve_in(tmp_path / "found")) == 7


def test_a_sweep_that_stops_early_leaves_no_trace(
    trainer: Trainer, events: Events, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    found = same_with_the_number(trainer, events, recipe_of, photos, tmp_path, STAGE)
    losses = [loss for _, loss in curve_in(tmp_path / "found")]
    assert found["batches"] == len(losses) < 50
    assert all(map(math.isfinite, losses))
    assert losses[-1] > 4 * min(losses)


def test_a_sweep_that_ends_in_no_number_leaves_no_trace(
    trainer: Trainer,
    events: Events,
    recipe_of: Callable[[str], Path],
    photos: Path,
    tmp_path: Path,
    overflowing: Path,
) -> None:
    text = HEAD + "find_batches = 400\nlabel_smoothing = 0.1\n"
    found = same_with_the_number(trainer, events, recipe_of, photos, tmp_path, text, "--weights", overflowing)
    # Within its first tenth nothing but a loss that is no number ends a sweep.
    assert found["batches"] == len(curve_in(tmp_path / "found")) < 40


def test_no_number_from_the_first_batch_on_is_refused(
    trainer: Trainer, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    tensors = models.build("digits_net", 2).module.state_dict()
    tensors["body.11.weight"] = torch.full_like(tensors["body.11.weight"], 3e38)
    save_file(tensors, tmp_path / "huge.safetensors")
    chosen = recipe_of(HEAD + 'lr = "find"\n')
    code, _, complained = trainer(
        *("fit", chosen, "--data", photos, "--out", tmp_path / "run", "--allow-cpu"),
        *("--weights", tmp_path / "huge.safetensors"),
    )
    assert code == 27
    assert complained.startswith("error: The loss was no number from the lowest rate on")
    assert complained.count("\n") == 1


class Stop:
    """Asks the run to stop after so many batches of the sweep: before it, each of the images is asked for twice."""

    def __init__(self, images: int, batches: int | None) -> None:
        self._left = None if batches is None else 2 * images + batches

    def __call__(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Stopped(signal.SIGINT)


def fit_until(chosen: Path, photos: Path, out: Path, cache: Path, batches: int | None, *, resume: bool = False) -> None:
    """Fits with a checkpoint for each stop; `batches` None goes on to the end."""
    options = Options(
        source=str(photos),
        out=out,
        device=choose(allow_cpu=True),
        workers=0,
        cache=cache,
        resume=resume,
        check_stop=Stop(32, batches),
    )
    fit(recipe.load(str(chosen)), options)


def kept_state(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = checkpoint.read(out / "checkpoints" / "last.safetensors").values["state"]
    return values


@pytest.mark.parametrize("batches", [1, 2, 17])
def test_a_sweep_stopped_by_ctrl_c_and_resumed_leaves_no_trace(
    trainer: Trainer, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path, batches: int
) -> None:
    text, whole, cut = STAGE + 'lr = "find"\n', tmp_path / "whole", tmp_path / "cut"
    run(trainer, recipe_of(text), photos, whole)
    with pytest.raises(Stopped):
        fit_until(recipe_of(text), photos, cut, tmp_path / "b", batches)
    assert (kept_state(cut)["step"], kept_state(cut)["batch"], kept_state(cut)["rates"]) == (0, batches, {})
    fit_until(recipe_of(text), photos, cut, tmp_path / "b", None, resume=True)
    assert curve_in(cut) == curve_in(whole)
    assert weights_of(cut) == weights_of(whole)


def test_a_sweep_stopped_at_its_last_batch_does_not_go_on_after_it(
    trainer: Trainer, events: Events, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    text, whole, cut = STAGE + 'lr = "find"\n', tmp_path / "whole", tmp_path / "cut"
    run(trainer, recipe_of(text), photos, whole)
    last = events(whole, "finder")[0]["batches"]
    assert last < 50  # it ends by its own rule
    with pytest.raises(Stopped):
        fit_until(recipe_of(text), photos, cut, tmp_path / "b", last)
    assert kept_state(cut)["batch"] == last
    fit_until(recipe_of(text), photos, cut, tmp_path / "b", None, resume=True)
    assert curve_in(cut) == curve_in(whole)
    assert weights_of(cut) == weights_of(whole)


def test_a_rate_that_was_found_is_not_looked_for_again_on_resuming(
    recipe_of: Callable[[str], Path], events: Events, photos: Path, tmp_path: Path
) -> None:
    chosen, out = recipe_of(STAGE + 'find_batches = 20\nlr = "find"\n'), tmp_path / "run"
    with pytest.raises(Stopped):
        fit_until(chosen, photos, out, tmp_path / "a", 21)  # one batch into the training, at most
    [found] = events(out, "finder")
    assert kept_state(out)["rates"] == {"0": found["lr"]}
    curve = out / "out" / "lr_finder-0.csv"
    curve.unlink()
    fit_until(chosen, photos, out, tmp_path / "a", None, resume=True)
    assert events(out, "finder") == [found]
    assert not curve.exists()
    assert events(out, "epoch")[0]["lr"] == found["lr"]
    assert json.loads((out / "out" / "summary.json").read_text())["rates_found"] == {"one": found["lr"]}


def test_a_second_sweep_knows_nothing_of_the_first(
    trainer: Trainer, events: Events, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    second = '\n[[stages]]\nname = "two"\nepochs = 1\nlr = "find"\n'
    run(trainer, recipe_of(STAGE + 'lr = "find"\n' + second), photos, tmp_path / "twice")
    rate_found = events(tmp_path / "twice", "finder")[0]["lr"]
    run(trainer, recipe_of(f"{STAGE}lr = {rate_found!r}\n{second}"), photos, tmp_path / "once")
    assert len(events(tmp_path / "twice", "finder")) == 2
    assert curve_in(tmp_path / "twice", "lr_finder-1") == curve_in(tmp_path / "once", "lr_finder-1")
    assert weights_of(tmp_path / "twice") == weights_of(tmp_path / "once")


def test_the_same_sweep_gives_the_same_curve_with_any_number_of_workers(
    trainer: Trainer, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    chosen = recipe_of(STAGE + 'lr = "find"\n')
    for workers in (0, 3):
        run(trainer, chosen, photos, tmp_path / str(workers), "--workers", workers)
    assert curve_in(tmp_path / "0") == curve_in(tmp_path / "3")


def test_the_curve_the_picture_and_the_reason_are_kept(
    trainer: Trainer, events: Events, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    chosen = recipe_of(HEAD + 'lr = "find"\nfind = "valley"\nfind_batches = 60\n')
    code, said, _ = trainer("fit", chosen, "--data", photos, "--out", out, "--allow-cpu")
    assert code == 0
    curve = curve_in(out)
    [found] = events(out, "finder")
    assert found["batches"] == len(curve) > 10
    assert [lr for lr, _ in curve] == [rate(batch, 60) for batch in range(len(curve))]
    assert found["suggestions"] == suggestions([lr for lr, _ in curve], [loss for _, loss in curve])
    assert (found["stage"], found["rule"], found["lr"]) == ("one", "valley", found["suggestions"]["valley"])
    assert f"learning rate {found['lr']:.1e}, the finder's valley after {len(curve)} batches" in said
    assert decode(out / "out" / "lr_finder-0.png").shape == (3, 540, 840)
    assert events(out, "epoch")[0]["lr"] == found["lr"]


def test_the_sweep_starts_from_the_stages_own_weights(
    trainer: Trainer, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    trained = STAGE.replace("epochs = 1", "epochs = 4") + "lr = 0.05\n"
    second = '\n[[stages]]\nname = "two"\nepochs = 1\nlr = "find"\n'
    run(trainer, recipe_of(STAGE + 'lr = "find"\n'), photos, tmp_path / "new")
    run(trainer, recipe_of(trained + second), photos, tmp_path / "trained")
    first, after = curve_in(tmp_path / "new"), curve_in(tmp_path / "trained", "lr_finder-1")
    assert after[0][1] < first[0][1] / 2
    assert set(load_file(tmp_path / "new" / "out" / "weights.safetensors")) == set(
        models.build("digits_net", 2).module.state_dict()
    )


@pytest.mark.parametrize("name", ["head/64 px", "../head", "h" * 250, "Köpfe – 64 px"])
def test_a_stages_name_is_no_path(
    trainer: Trainer, recipe_of: Callable[[str], Path], photos: Path, tmp_path: Path, name: str
) -> None:
    chosen = recipe_of(HEAD.replace('name = "one"', f'name = "{name}"') + 'lr = "find"\nfind_batches = 6\n')
    code, said, complained = trainer("fit", chosen, "--data", photos, "--out", tmp_path / "run", "--allow-cpu")
    # Refused before anything is computed, or trained with.
    assert (code, "data:" in said) in {(0, True), (20, False)}, complained
    assert {path.name for path in tmp_path.iterdir()} <= {"photos", "run", "cache", chosen.name}
