from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import models, optimizer, recipe, weights
from trainer.errors import RecipeRefused, WeightsRefused

SHARED_WEIGHTS = Path(__file__).parents[2].parent / "shared" / "weights" / "mobilenet_v2-imagenet.safetensors"


def stage(**values: object) -> recipe.Stage:
    return recipe.Stage(**{"epochs": 1, **values})  # type: ignore[arg-type]


def test_resnet34_has_the_layer_groups_of_fast_ai() -> None:
    groups = models.build("resnet34", 2).group_parameters()
    # facts/fastai.md 1.6, by running 0.7's own cut; the head here is one linear layer
    assert [sum(parameter.numel() for parameter in group) for group in groups] == [1_347_904, 19_936_768, 1_026]


@pytest.mark.parametrize(("arch", "groups"), [("mobilenet_v2", 3), ("resnet18", 3), ("vit_b_32", 2), ("digits_net", 2)])
def test_every_parameter_is_in_one_group_and_the_head_fits_the_classes(arch: str, groups: int) -> None:
    network = models.build(arch, 7)
    assert network.group_count == groups
    grouped = [id(parameter) for group in network.group_parameters() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.module.parameters())
    assert network.module.get_submodule(network.last_layer).out_features == 7


def test_an_unknown_network_is_refused_with_the_closest_name() -> None:
    with pytest.raises(RecipeRefused, match="did you mean 'resnet34'"):
        models.build("resnet43", 2)


def test_a_frozen_group_changes_in_nothing_its_batch_norm_included() -> None:
    network = models.build("photo_net", 2)
    network.freeze_to(-1)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    stepper = optimizer.build(network, stage(lr=0.1, weight_decay=0.1))
    network.train()
    network.module(torch.randn(4, 3, 32, 32)).sum().backward()
    stepper.step()
    changed = {name for name, tensor in network.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.3.weight", "head.3.bias"}


def test_an_unfrozen_network_learns_everywhere() -> None:
    network = models.build("photo_net", 2)
    network.freeze_to(-1)
    network.freeze_to(0)
    network.train()
    assert all(parameter.requires_grad for parameter in network.module.parameters())
    assert all(module.training for module in network.module.modules())


def test_rates_spread_over_the_groups_and_norms_and_biases_are_not_decayed() -> None:
    network = models.build("resnet18", 2)
    stepper = optimizer.build(network, stage(lr=0.01, spread=10, weight_decay=0.1))
    assert {group["highest_lr"] for group in stepper.param_groups} == {0.01, 0.001, 0.0001}
    for group in stepper.param_groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.1) for parameter in group["params"])
    optimizer.set_rates(stepper, 0.5)
    assert stepper.param_groups[-1]["lr"] == 0.005


@pytest.mark.parametrize(
    ("change", "sentence"), [({"freeze_to": 3}, "has 3 layer groups"), ({"lr": (1.0, 2.0)}, "has 2 learning rates")]
)
def test_a_stage_that_does_not_fit_the_networks_groups_is_refused(change: dict[str, object], sentence: str) -> None:
    made = recipe.Recipe(arch="resnet18", stages=(stage(**change),))
    with pytest.raises(RecipeRefused, match=sentence):
        models.check(models.build("resnet18", 2), made)


def test_images_too_small_for_the_network_are_refused() -> None:
    made = recipe.Recipe(arch="photo_net", stages=(stage(size_px=8),))
    with pytest.raises(RecipeRefused, match="photo_net cannot take images of 8 px"):
        models.check(models.build("photo_net", 2), made)


def test_weights_come_back_but_for_the_layer_of_other_classes(tmp_path: Path) -> None:
    trained, fresh = models.build("photo_net", 2), models.build("photo_net", 5)
    weights.save_weights(trained.module, tmp_path / "weights.safetensors")
    loaded = weights.load_pretrained(fresh, "photo_net", str(tmp_path / "weights.safetensors"))
    assert loaded.missing == ("head.3.weight", "head.3.bias")
    assert loaded.loaded == len(trained.module.state_dict()) - 2
    assert torch.equal(fresh.module.state_dict()["body.0.weight"], trained.module.state_dict()["body.0.weight"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"body.0.weight": None}, "body.0.weight is missing"),
        (
            {"body.0.weight": torch.zeros(1, 3, 3, 3)},
            r"body.0.weight has shape \(1, 3, 3, 3\) instead of \(16, 3, 3, 3\)",
        ),
        ({"spare": torch.zeros(1)}, "spare is not part of photo_net"),
    ],
)
def test_weights_of_another_network_are_refused_by_key(
    tmp_path: Path, change: dict[str, torch.Tensor | None], sentence: str
) -> None:
    tensors = models.build("photo_net", 2).module.state_dict() | change
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsRefused, match=sentence):
        weights.load_pretrained(models.build("photo_net", 2), "photo_net", str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.pth", b"\x80\x04cos\nsystem\n."),
        ("model.safetensors", b"\x80\x04cos\nsystem\n."),
        ("model.safetensors", b""),
    ],
)
def test_a_file_that_could_run_code_is_never_opened_as_such(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsRefused):
        weights.load_pretrained(models.build("photo_net", 2), "photo_net", str(tmp_path / name))


def test_there_are_no_imagenet_weights_for_our_own_networks() -> None:
    with pytest.raises(WeightsRefused, match="no ImageNet weights for digits_net"):
        weights.load_pretrained(models.build("digits_net", 2), "digits_net", True)


@pytest.mark.skipif(not SHARED_WEIGHTS.exists(), reason=f"{SHARED_WEIGHTS} is not here")
def test_features_alone_are_enough_and_the_new_head_is_named() -> None:
    network = models.build("mobilenet_v2", 2)
    loaded = weights.load_pretrained(network, "mobilenet_v2", str(SHARED_WEIGHTS))
    assert (loaded.loaded, loaded.missing) == (312, ("classifier.1.weight", "classifier.1.bias"))
    assert torch.equal(
        network.module.state_dict()["features.0.0.weight"], load_file(SHARED_WEIGHTS)["features.0.0.weight"]
    )
