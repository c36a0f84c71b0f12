"""What a stage does to the weights: its cycles, its options, and what it keeps."""

import csv
import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainer.conftest import paint
from trainer import checkpoint, losses, models, optimizer, recipe, schedules
from trainer.device import choose
from trainer.fit import fit
from trainer.history import Cycle, overfits
from trainer.opening import Options
from trainer.stage import Stage

Trainer = Callable[..., tuple[int, str, str]]
Events = Callable[[Path, str], list[dict[str, Any]]]
Write = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe of the stages given, each a TOML text, with `top` above them."""

    def write(*stages: str, top: str = "", name: str = "r") -> Path:
        path = tmp_path / f"{name}.toml"
        head = f'arch = "digits_net"\nsize_px = 16\nbatch_size = 8\nlr = 0.05\nprecision = "fp32"\n{top}\n'
        if "arch" in top:
            head = head.partition("\n")[2]
        path.write_text(head + "".join(f"[[stages]]\n{stage}\n" for stage in stages))
        return path

    return write


@pytest.fixture
def done(trainer: Trainer, photos: Path, tmp_path: Path) -> Callable[..., Path]:
    """Fits a recipe on the photographs: the run directory."""

    def run(chosen: Path, name: str = "run", *more: object, source: Path = photos) -> Path:
        out = tmp_path / name
        code, _, complained = trainer("fit", chosen, "--data", source, "--out", out, "--allow-cpu", *more)
        assert (code, complained) == (0, "")
        return out

    return run


def weights(out: Path, file: str = "out/weights.safetensors") -> dict[str, Tensor]:
    return load_file(out / file)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def mislabelled(tmp_path: Path) -> Path:
    """Images whose classes say nothing: what is learned of them is wrong for others."""
    draw = random.Random(1)
    for part, count in (("train", 16), ("valid", 16)):
        for index in range(count):
            colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
            paint(tmp_path / "noise" / part / "ab"[index % 2] / f"{part}{index}.png", colour, seed=index)
    return tmp_path / "noise"


OVERFITTING = 'cycles = 12\ncycle_len = 2\nuntil_overfitting = true\naugment = false\noptimizer = "adamw"\nlr = 0.01'


def test_a_stage_ends_after_the_cycle_that_over_fits_and_keeps_the_best(
    done: Callable[..., Path], events: Events, write: Write, mislabelled: Path
) -> None:
    out = done(write(OVERFITTING + "\nsnapshots = true"), source=mislabelled)
    cycles = events(out, "cycle")
    assert 2 <= len(cycles) < 12
    rose = [
        now["valid_loss"] > before["valid_loss"] and now["train_loss"] < before["train_loss"]
        for before, now in itertools.pairwise(cycles)
    ]
    assert rose == [False] * (len(rose) - 1) + [True]
    assert [cycle["decision"] for cycle in cycles] == ["it goes on"] * (len(cycles) - 1) + ["over-fitting: it ends"]
    best = min(cycles, key=lambda cycle: cycle["valid_loss"])
    assert best["number"] < len(cycles)
    assert [cycle["best"] for cycle in cycles][-1] == best["number"]
    assert [cycle["epoch"] for cycle in cycles] == [2 * cycle["number"] for cycle in cycles]
    assert len(events(out, "epoch")) == 2 * len(cycles)
    assert same(weights(out), weights(out, f"out/{best['snapshot']}"))
    assert not same(weights(out), weights(out, f"out/{cycles[-1]['snapshot']}"))
    # Both losses are of the images as they are: what the kept network answers is what the best cycle measured.
    summary = json.loads((out / "out" / "summary.json").read_text())
    assert summary["valid_loss"] == pytest.approx(best["valid_loss"], abs=1e-5)
    assert summary["selected_by"] == [f"stage 'train': cycle {best['number']} of {len(cycles)}, by its validation loss"]
    assert summary["selected_on_this_set"] is True


@pytest.mark.parametrize(
    ("train", "valid", "over"),
    [
        ((0.5, 0.4), (0.6, 0.7), True),
        ((0.5, 0.6), (0.6, 0.7), False),  # both rose: it diverges or the rate jumped, but it does not over-fit
        ((0.5, 0.4), (0.6, 0.5), False),
        ((0.5, 0.4), (0.6, 0.6), False),
        ((0.5,), (0.6,), False),
        ((0.5, 0.4, 0.3), (0.6, 0.7, 0.65), False),  # the last two decide
    ],
)
def test_over_fitting_is_a_risen_validation_and_a_fallen_training_loss(
    train: tuple[float, ...], valid: tuple[float, ...], over: bool
) -> None:
    cycles = [
        Cycle(number=number, epoch=number, train_loss=fell, valid_loss=rose, snapshot="")
        for number, (fell, rose) in enumerate(zip(train, valid, strict=True), 1)
    ]
    assert overfits(cycles) is over


def test_the_training_loss_of_a_cycle_is_that_of_the_images_as_they_are(
    done: Callable[..., Path], events: Events, write: Write, photos: Path
) -> None:
    shutil.rmtree(photos / "valid")
    shutil.copytree(photos / "train", photos / "valid")
    out = done(write("cycles = 2\nuntil_overfitting = true\nlabel_smoothing = 0.2\nmixup = 0.4"))
    for cycle in events(out, "cycle"):  # the same images in both parts: the same loss, dropout and smoothing aside
        assert cycle["train_loss"] == pytest.approx(cycle["valid_loss"], abs=1e-6)


def test_a_stage_that_never_over_fits_runs_to_its_end(done: Callable[..., Path], events: Events, write: Write) -> None:
    out = done(write("cycles = 3\nuntil_overfitting = true"))
    cycles = events(out, "cycle")
    assert [cycle["decision"] for cycle in cycles] == ["it goes on", "it goes on", "the stage's last"]
    assert list((out / "checkpoints").glob("stage-*")) == []  # its snapshots were only to choose from


def test_a_snapshot_is_taken_after_the_last_step_of_its_cycle(
    done: Callable[..., Path], events: Events, write: Write
) -> None:
    twice = done(write("cycles = 2\ncycle_mult = 2\nsnapshots = true", name="same"))
    once = done(write("cycles = 1\nsnapshots = true", name="same"), "once")
    assert same(weights(twice, "out/stage-0-cycle-1.safetensors"), weights(once))
    assert same(weights(twice, "out/stage-0-cycle-2.safetensors"), weights(twice))
    assert not same(weights(twice), weights(once))
    assert [epoch["lr"] for epoch in events(twice, "epoch")] == pytest.approx([0.05, 0.05, 0.025])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_an_ensembles_probabilities_are_the_mean_of_its_snapshots(
    done: Callable[..., Path], trainer: Trainer, events: Events, write: Write, photos: Path, tmp_path: Path
) -> None:
    # Three snapshots, then a stage that keeps none: the final network is not one of them.
    out = done(write("cycles = 3\nsnapshots = true\nlr = 0.02", 'name = "more"\nlr = 0.001'))
    found = rows((out / "out" / "predictions.csv").read_text())
    model = json.loads((out / "out" / "model.json").read_text())
    assert model["ensemble"] == [f"stage-0-cycle-{number}.safetensors" for number in (1, 2, 3)]
    each = []
    for name in model["ensemble"]:
        alone = tmp_path / name / "out"
        alone.mkdir(parents=True)
        (alone / "model.json").write_text(json.dumps(model | {"ensemble": []}))
        shutil.copy(out / "out" / name, alone / "weights.safetensors")
        code, table, _ = trainer("predict", tmp_path / name, photos / "valid")
        assert code == 0
        by_image = {Path(row["image"]).name: float(row["cats"]) for row in rows(table)}
        each.append([by_image[Path(row["image"]).name] for row in found])
    assert len({tuple(column) for column in each}) == 3
    mean = np.mean(each, axis=0)
    assert [float(row["cats"]) for row in found] == pytest.approx(mean.tolist(), abs=1e-6)
    [end] = events(out, "end")
    assert set(end["scores"]["valid"]) == {"plain", "ensemble"}


class Watched:
    """Reads each step's checkpoint: what the network and the average were then."""

    def __init__(self, out: Path) -> None:
        self._file = out / "checkpoints" / "last.safetensors"
        self.seen: dict[tuple[int, int], dict[str, Tensor]] = {}

    def __call__(self) -> None:
        if self._file.exists():
            kept = checkpoint.read(self._file)
            state = kept.values["state"]
            if state["step"] == 0 and state["batch"]:
                self.seen.setdefault((state["epoch"], state["batch"]), kept.tensors)


def watched(chosen: Path, photos: Path, out: Path, cache: Path) -> list[dict[str, Tensor]]:
    """The tensors of the checkpoint after each step."""
    watch = Watched(out)
    options = Options(
        source=str(photos),
        out=out,
        device=choose(allow_cpu=True),
        workers=0,
        cache=cache,
        checkpoint_every_s=0.0,
        check_stop=watch,
    )
    fit(recipe.load(str(chosen)), options)
    return [watch.seen[place] for place in sorted(watch.seen)]


@pytest.mark.parametrize("frozen", ["freeze_to = -1", "freeze_to = 0"], ids=["head", "all layers"])
def test_the_average_of_the_weights_equals_one_computed_by_hand(
    write: Write, photos: Path, tmp_path: Path, frozen: str
) -> None:
    steps = watched(write(f"epochs = 2\nema = 0.7\n{frozen}"), photos, tmp_path / "run", tmp_path / "c")
    assert len(steps) == 6
    names = ["head.1.weight", "head.1.bias"] + ["body.0.weight", "body.1.running_mean"] * (frozen[-1] == "0")
    kept = weights(tmp_path / "run")
    for name in names:
        learned = [step[f"network/{name}"].double() for step in steps]
        assert not torch.equal(learned[0], learned[-1])
        by_hand = learned[0]
        for tensor in learned[1:]:
            by_hand = 0.7 * by_hand + 0.3 * tensor
        torch.testing.assert_close(kept[name].double(), by_hand, rtol=0, atol=1e-6)


def test_an_average_changes_no_counter_of_a_frozen_layer(
    done: Callable[..., Path], write: Write, tmp_path: Path
) -> None:
    network = models.build("mobilenet_v2", 2, "linear")
    for name, tensor in network.module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1561)
    save_file(network.module.state_dict(), tmp_path / "counted.safetensors")
    chosen = write("freeze_to = 1\nema = 0.9\nlr = 0.001", top='arch = "mobilenet_v2"\nhead = "linear"')
    out = done(chosen, "run", "--weights", tmp_path / "counted.safetensors", "--set", "size_px=32")
    kept = weights(out)
    frozen = [name for name in kept if name.startswith("features.0.")]
    assert len(frozen) == 6
    start = load_file(tmp_path / "counted.safetensors")
    assert [name for name in frozen if not torch.equal(kept[name], start[name])] == []


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_two_batches_of_four_accumulated_equal_one_of_eight(
    done: Callable[..., Path], write: Write, optimizer_name: str
) -> None:
    top = 'arch = "resnet18"\nhead = "linear"'
    stage = f'epochs = 2\nfreeze_to = -1\noptimizer = "{optimizer_name}"\nweight_decay = 0.01\nlr = 0.02'
    large = weights(done(write(stage, top=top), "large", "--set", "size_px=32"))
    small = weights(done(write(stage + "\nbatch_size = 4\naccumulate = 2", top=top), "small", "--set", "size_px=32"))
    for name in ("head.0.weight", "head.0.bias"):
        torch.testing.assert_close(small[name], large[name], rtol=0, atol=1e-6)
    four = weights(done(write(stage + "\nbatch_size = 4", top=top), "four", "--set", "size_px=32"))
    assert not torch.allclose(four["head.0.weight"], large["head.0.weight"], rtol=0, atol=1e-4)


def test_accumulated_batches_of_other_sizes_weigh_by_their_images(
    done: Callable[..., Path], write: Write, photos: Path
) -> None:
    for name in ("cats.11", "cats.10"):
        (photos / "train" / "cats" / f"{name}.png").unlink()
    # 22 images: batches of 4, 4, 4, 4, 4, 2 are steps of 8, 8 and 6
    top = 'arch = "resnet18"\nhead = "linear"'
    stage = "epochs = 1\nfreeze_to = -1"
    large = weights(done(write(stage, top=top), "large", "--set", "size_px=32"))
    small = weights(done(write(stage + "\nbatch_size = 4\naccumulate = 2", top=top), "small", "--set", "size_px=32"))
    torch.testing.assert_close(small["head.0.weight"], large["head.0.weight"], rtol=0, atol=1e-6)


def test_accumulated_batches_weigh_alike_with_class_weights_too(
    done: Callable[..., Path], write: Write, photos: Path
) -> None:
    for index in range(4, 12):
        (photos / "train" / "cats" / f"cats.{index}.png").unlink()
    top = 'arch = "resnet18"\nhead = "linear"'
    stage = 'epochs = 1\nfreeze_to = -1\nclass_weights = "balanced"'
    large = weights(done(write(stage, top=top), "large", "--set", "size_px=32"))
    small = weights(done(write(stage + "\nbatch_size = 4\naccumulate = 2", top=top), "small", "--set", "size_px=32"))
    torch.testing.assert_close(small["head.0.weight"], large["head.0.weight"], rtol=0, atol=1e-6)


def test_a_clipped_step_moves_the_weights_by_the_clip_times_the_rate(
    write: Write, photos: Path, tmp_path: Path
) -> None:
    chosen = write("epochs = 1\nfreeze_to = -1\nclip = 0.001\nlr = 0.5\nbatch_size = 24")
    [step] = watched(chosen, photos, tmp_path / "run", tmp_path / "c")
    torch.manual_seed(0)
    start = models.build("digits_net", 2).module.state_dict()
    moved = [step[f"network/{name}"] - start[name] for name in ("head.1.weight", "head.1.bias")]
    assert torch.cat([change.flatten() for change in moved]).norm().item() == pytest.approx(0.0005, rel=1e-3)


def test_class_weights_are_those_of_scikit_learn() -> None:
    targets = torch.tensor([0] * 10 + [1] * 3 + [2] * 2)
    expected = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy())).float()
    loss = losses.training_loss(Stage(class_weights="balanced"), targets, 3, CPU)
    torch.manual_seed(0)
    scores = torch.randn(15, 3)
    torch.testing.assert_close(loss(scores, targets), F.cross_entropy(scores, targets, weight=expected))
    plain = losses.training_loss(Stage(), targets, 3, CPU)
    assert not torch.allclose(loss(scores, targets), plain(scores, targets))


def test_class_weights_of_several_labels_count_each_label_by_its_rarity() -> None:
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    loss = losses.training_loss(Stage(class_weights="balanced"), targets, 2, CPU)
    scores = torch.tensor([[0.5, -1.0], [2.0, 0.1], [0.0, 0.0], [-1.0, 3.0]])
    expected = torch.tensor([4 / (2 * 3), 4 / (2 * 1)])
    each = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    torch.testing.assert_close(loss(scores, targets), (each * expected).mean())


def test_class_weights_and_smoothing_are_no_part_of_what_is_measured(
    done: Callable[..., Path], events: Events, write: Write, photos: Path
) -> None:
    for index in range(3, 12):
        (photos / "train" / "cats" / f"cats.{index}.png").unlink()
    # Steps too small to change anything: the validation loss is the same, the training loss is not.
    plain = events(done(write("lr = 1e-12\naugment = false"), "plain"), "epoch")[0]
    smoothed = 'lr = 1e-12\naugment = false\nclass_weights = "balanced"\nlabel_smoothing = 0.3'
    other = events(done(write(smoothed), "other"), "epoch")[0]
    assert other["valid_loss"] == pytest.approx(plain["valid_loss"], abs=1e-6)
    assert abs(other["train_loss"] - plain["train_loss"]) > 1e-4


def test_label_smoothing_gives_each_class_its_share() -> None:
    loss = losses.training_loss(Stage(label_smoothing=0.3), torch.tensor([0, 1, 2]), 3, CPU)
    scores = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 0.0]])
    wanted = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    expected = -(wanted * scores.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss(scores, torch.tensor([0, 1])), expected)


def test_label_smoothing_of_several_labels_moves_each_towards_a_half() -> None:
    loss = losses.training_loss(Stage(label_smoothing=0.2), torch.zeros(2, 2), 2, CPU)
    scores, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    expected = F.binary_cross_entropy_with_logits(scores, torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(loss(scores, targets), expected)


def test_mixed_images_and_targets_follow_from_their_address() -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(8, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    one, other = (losses.mixed(images, targets, 3, 0.4, (0, 1, 2, 3)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    for address in ((1, 1, 2, 3), (0, 0, 2, 3), (0, 1, 0, 3), (0, 1, 2, 0)):
        assert not torch.equal(losses.mixed(images, targets, 3, 0.4, address)[0], one[0])
    torch.testing.assert_close(one[1].sum(dim=1), torch.ones(8))


def test_images_are_mixed_with_their_partners_as_their_targets_are() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    mixed, wanted = losses.mixed(images, torch.arange(6), 6, 1.0, (0, 0, 0, 0))
    assert not torch.equal(mixed, images)
    # Image i is i everywhere, and its target the i-th unit vector: both are blended alike.
    torch.testing.assert_close(mixed[:, 0, 0, 0], wanted @ torch.arange(6.0))


def test_two_runs_with_mixup_are_equal_and_one_without_is_not(done: Callable[..., Path], write: Write) -> None:
    mixed = write("epochs = 2\nmixup = 0.4", name="mixed")
    one, other = done(mixed, "one"), done(mixed, "other", "--workers", 3)
    assert same(weights(one), weights(other))
    assert not same(weights(one), weights(done(write("epochs = 2", name="plain"), "plain")))


def test_training_the_head_leaves_the_frozen_batch_norm_as_it_was(done: Callable[..., Path], write: Write) -> None:
    out = done(write("epochs = 2\nfreeze_to = -1", top='arch = "mobilenet_v2"'), "run", "--set", "size_px=32")
    torch.manual_seed(0)
    start, end = models.build("mobilenet_v2", 2).module.state_dict(), weights(out)
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {name for name in start if name.startswith("head.")}
    assert {"head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked"} < changed


def test_weight_decay_pulls_at_matrices_alone() -> None:
    network = models.build("mobilenet_v2", 2)
    stage = Stage(weight_decay=0.5, momentum=0.0)
    built = optimizer.build(network, stage, 0.1)
    before = {name: tensor.clone() for name, tensor in network.module.named_parameters()}
    for parameter in network.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built.step()
    norms = tuple(
        f"{name}."
        for name, layer in network.module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
    )
    for name, parameter in network.module.named_parameters():
        kept = name.startswith(norms) or name.endswith("bias")
        torch.testing.assert_close(parameter.detach(), before[name] * (1 if kept else 1 - 0.1 * 0.5))


def test_one_cycle_rises_for_a_quarter_then_falls_to_almost_nothing() -> None:
    shares = [schedules.share("one_cycle", step, 1000, 1) for step in range(1000)]
    assert shares[0] == pytest.approx(1 / 25)
    assert shares[250] == max(shares) == pytest.approx(1)
    assert shares[:251] == sorted(shares[:251])
    assert shares[250:] == sorted(shares[250:], reverse=True)
    assert shares[125] == pytest.approx((1 + 1 / 25) / 2)
    assert shares[625] == pytest.approx((1 + 1e-5) / 2)
    assert 1e-5 < shares[-1] < 1e-4


def test_one_cycle_is_what_a_stage_follows(done: Callable[..., Path], events: Events, write: Write) -> None:
    out = done(write('epochs = 4\nschedule = "one_cycle"'))
    expected = [0.05 * schedules.one_cycle(epoch / 4) for epoch in range(4)]
    assert [epoch["lr"] for epoch in events(out, "epoch")] == pytest.approx(expected)


@pytest.mark.parametrize("stage", ["freeze_to = -1", "freeze_to = -1\nprecompute = true", "accumulate = 2"])
def test_a_last_batch_of_one_joins_the_one_before(
    done: Callable[..., Path], events: Events, write: Write, photos: Path, stage: str
) -> None:
    for index in range(5, 12):
        (photos / "train" / "cats" / f"cats.{index}.png").unlink()
    # 17 images: 8 and 9, for BatchNorm has no variance of one
    chosen = write(f'{stage}\nepochs = 2\nlr = "find"\nfind_batches = 5\nfind = "valley"', top='arch = "squeezenet1_1"')
    out = done(chosen, "run", "--set", "size_px=32")
    assert [epoch["steps"] for epoch in events(out, "epoch")] == [2, 2]


def test_two_stages_of_different_sizes_train_one_network(
    done: Callable[..., Path], events: Events, write: Write, trainer: Trainer, photos: Path
) -> None:
    out = done(write("epochs = 1", 'name = "larger"\nsize_px = 24\nepochs = 1', name="growing"))
    model = json.loads((out / "out" / "model.json").read_text())
    assert (model["size_px"], model["decoded_px"]) == (24, 26)
    assert [epoch["stage"] for epoch in events(out, "epoch")] == ["train", "larger"]
    # The first stage is what it is alone, but for the size that the images are decoded at.
    first = done(write("epochs = 1", name="growing"), "first", "--set", "augmentation.zoom_max=1.1")
    assert not same(weights(out), weights(first))
    code, table, _ = trainer("predict", out, photos / "valid")
    assert code == 0
    told = {
        Path(row["image"]).name: float(row["probability"]) for row in rows((out / "out/predictions.csv").read_text())
    }
    said = {Path(row["image"]).name: float(row["probability"]) for row in rows(table)}
    assert said == pytest.approx(told, abs=1e-6)
