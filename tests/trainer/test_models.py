import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer import models, optimizer, recipe, weights
from trainer.errors import RecipeRefused
from trainer.stage import Stage

# One of each of torchvision's families, the smallest, with the side of an image that it takes.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 224,
}
WHOLE = {"vit_b_32"}  # gives no feature map


def stage(**values: object) -> Stage:
    return Stage(**{"epochs": 1, **values})  # type: ignore[arg-type]


def sizes(network: models.Network) -> list[int]:
    return [sum(parameter.numel() for parameter in group) for group in network.group_parameters()]


def relative(difference: Tensor, of: Tensor) -> float:
    return (difference.norm() / of.norm()).item()


def with_varied_norms(network: models.Network) -> models.Network:
    """The network with BatchNorm statistics as after training; those of a fresh one fold to nothing."""
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def test_every_family_of_torchvision_is_tried_below() -> None:
    def family(name: str) -> str:
        return torchvision.models.get_model_builder(name).__module__

    every = torchvision.models.list_models(module=torchvision.models)
    assert {family(name) for name in FAMILIES} == {family(name) for name in every}


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_body_gives_what_reaches_the_vendors_classifier(arch: str, tmp_path: Path) -> None:
    inception = {"transform_input": True, "init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    vendors = torchvision.models.get_model(arch, weights=None, **inception).eval()
    save_file(vendors.state_dict(), tmp_path / "vendors.safetensors")
    network = models.build(arch, 7, "linear")
    loaded = weights.load_pretrained(network, str(tmp_path / "vendors.safetensors"))
    assert all(key.startswith("head.") for key in loaded.missing)
    assert all(key.startswith(network.replaced) for key in loaded.ignored)
    reached: list[Tensor] = []
    first = vendors.get_submodule(network.replaced[0])
    first.register_forward_pre_hook(lambda _module, inputs: reached.append(inputs[0]))
    images = torch.rand(2, 3, FAMILIES[arch], FAMILIES[arch])
    network.module.eval()
    with torch.no_grad():
        vendors(images)
        features = network.features(images)
    expected = reached[0].mean((2, 3)) if reached[0].ndim == 4 else reached[0]
    assert relative(features - expected, of=expected) < 1e-5


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_network_is_whole_in_its_groups_its_parts_and_its_summary(arch: str) -> None:
    network = with_varied_norms(models.build(arch, 3))
    network.module.eval()
    assert network.head_kind == ("linear" if arch in WHOLE else "concat_pool")
    assert network.group_count == (2 if arch in WHOLE else 3)
    assert all(sizes(network))
    grouped = [id(parameter) for group in network.group_parameters() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.module.parameters())
    assert sum(row.parameters for row in models.summary(network, FAMILIES[arch])) == sum(sizes(network))
    images = torch.rand(2, 3, FAMILIES[arch], FAMILIES[arch])
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, network.feature_width)
        assert torch.equal(network.classify(features), network.module(images))
        folded = models.frozen_forward(network)
        assert relative(folded(images) - features, of=features) < 1e-5
    assert not any(module.training for module in folded.modules())


def test_resnet34_has_the_groups_and_the_head_of_fast_ai() -> None:
    network = models.build("resnet34", 2)
    assert sizes(network) == [1_347_904, 19_936_768, 528_898]  # facts/fastai.md 1.6, by running 0.7's own code
    assert [name for name, _ in network.module.named_children()][-3:] == ["layer4", "pool", "head"]
    kinds = [type(layer).__name__ for layer in network.module.get_submodule("head").children()]
    assert kinds == ["BatchNorm1d", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    largest_first = network.module.get_submodule("pool")(torch.tensor([[[[1.0, 2.0, 6.0]]]]))
    assert largest_first.tolist() == [[6.0, 3.0]]


@pytest.mark.parametrize(
    ("arch", "late_from"),
    [
        ("vgg16", "features.24.weight"),
        ("densenet121", "features.transition2.norm.weight"),
        ("resnet50", "layer3.0.conv1.weight"),
    ],
)
def test_the_rule_for_groups_gives_what_fast_ai_has_for_other_families(arch: str, late_from: str) -> None:
    network = models.build(arch, 2)
    late = {id(parameter) for parameter in network.group_parameters()[1]}
    first = next(name for name, parameter in network.module.named_parameters() if id(parameter) in late)
    assert first == late_from


@pytest.mark.parametrize("arch", ["digits_net", "photo_net"])
def test_our_own_networks_have_one_linear_layer_whatever_is_asked(arch: str) -> None:
    network = models.build(arch, 7, "concat_pool")
    assert (network.head_kind, network.group_count) == ("linear", 2)
    assert network.module.get_submodule("head.1").out_features == 7


def test_an_unknown_network_is_refused_with_the_closest_name() -> None:
    with pytest.raises(RecipeRefused, match="did you mean 'resnet34'"):
        models.build("resnet43", 2)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_timm_network_without_timm_is_refused_with_what_to_install() -> None:
    with pytest.raises(
        RecipeRefused, match=r"timm/resnet18 needs the package timm\. Install it with: pip install timm"
    ):
        models.build("timm/resnet18", 2)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize(
    ("name", "head_kind"), [("resnet18", "concat_pool"), ("vit_tiny_patch16_224", "linear"), ("levit_128s", "linear")]
)
def test_a_timm_network_takes_timms_own_weights(name: str, head_kind: str, tmp_path: Path) -> None:
    import timm

    vendors = timm.create_model(name).eval()
    save_file({key: tensor.contiguous() for key, tensor in vendors.state_dict().items()}, tmp_path / "t.safetensors")
    network = models.build(f"timm/{name}", 2)
    weights.load_pretrained(network, str(tmp_path / "t.safetensors"))
    images = torch.rand(2, 3, 224, 224)
    network.module.eval()
    with torch.no_grad():
        features = network.features(images)
        expected = vendors.forward_head(vendors.forward_features(images), pre_logits=True)
    assert network.head_kind == head_kind
    assert relative(features[:, -expected.shape[1] :] - expected, of=expected) < 1e-5


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_a_timm_name_that_would_be_fetched_is_refused() -> None:
    with pytest.raises(RecipeRefused, match="has no network 'hf-hub:someone/something'"):
        models.build("timm/hf-hub:someone/something", 2)


def test_a_frozen_group_changes_in_nothing_its_batch_norm_included() -> None:
    network = models.build("photo_net", 2)
    network.freeze_to(-1)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    stepper = optimizer.build(network, stage(weight_decay=0.1), 0.1)
    network.train()
    network.module(torch.randn(4, 3, 32, 32)).sum().backward()
    stepper.step()
    changed = {name for name, tensor in network.module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.1.weight", "head.1.bias"}


def test_a_frozen_body_gives_the_same_features_in_training_as_at_prediction() -> None:
    network = with_varied_norms(models.build("resnet18", 2))
    images = torch.rand(4, 3, 64, 64)
    network.freeze_to(-1)
    network.train()
    assert network.module.get_submodule("head").training
    with torch.no_grad():
        training = network.features(images)
        network.module.eval()
        assert torch.equal(network.features(images), training)


def test_half_frozen_the_late_layers_learn_and_the_early_norms_stand() -> None:
    network = models.build("resnet18", 2)
    network.freeze_to(1)
    network.train()
    assert network.frozen == 1
    assert not network.module.get_submodule("layer2.1.bn2").training
    assert network.module.get_submodule("layer3.0.bn1").training
    assert not network.module.get_parameter("layer2.1.conv2.weight").requires_grad
    assert network.module.get_parameter("layer3.0.conv1.weight").requires_grad


def test_an_unfrozen_network_learns_everywhere() -> None:
    network = models.build("photo_net", 2)
    network.freeze_to(-1)
    network.freeze_to(0)
    network.train()
    assert all(parameter.requires_grad for parameter in network.module.parameters())
    assert all(module.training for module in network.module.modules())


def test_rates_spread_over_the_groups_and_norms_and_biases_are_not_decayed() -> None:
    network = models.build("resnet18", 2)
    stepper = optimizer.build(network, stage(spread=10, weight_decay=0.1), 0.01)
    assert {group["highest_lr"] for group in stepper.param_groups} == {0.01, 0.001, 0.0001}
    for group in stepper.param_groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.1) for parameter in group["params"])
    optimizer.set_rates(stepper, 0.5)
    assert stepper.param_groups[-1]["lr"] == 0.005


def test_a_summary_names_each_layer_its_shape_and_whether_it_learns() -> None:
    network = models.build("digits_net", 10)
    network.freeze_to(-1)
    network.train()
    rows = {row.name: row for row in models.summary(network, 8)}
    assert rows["body.0"] == models.Row(name="body.0", kind="Conv2d", output=(32, 8, 8), parameters=864, trained=False)
    assert rows["head.1"].trained and rows["head.1"].output == (10,)
    lines = models.lines(network, 8)
    assert lines[1].split() == ["body.0", "Conv2d", "32", "×", "8", "×", "8", "864", "frozen"]
    assert lines[-2:] == [
        "digits_net with a linear head: 66,410 parameters, 650 trained",
        "2 layer groups: 65,760, 650",
    ]
    assert network.module.get_submodule("head").training  # as before


@pytest.mark.parametrize(
    ("change", "sentence"), [({"freeze_to": 3}, "has 3 layer groups"), ({"lr": (1.0, 2.0)}, "has 2 learning rates")]
)
def test_a_stage_that_does_not_fit_the_networks_groups_is_refused(change: dict[str, object], sentence: str) -> None:
    made = recipe.Recipe(arch="resnet18", stages=(stage(**change),))
    with pytest.raises(RecipeRefused, match=sentence):
        models.check(models.build("resnet18", 2), made)


@pytest.mark.parametrize(("arch", "size_px"), [("photo_net", 8), ("vit_b_32", 64)])
def test_images_of_a_size_that_the_network_cannot_take_are_refused(arch: str, size_px: int) -> None:
    made = recipe.Recipe(arch=arch, stages=(stage(size_px=size_px),))
    with pytest.raises(RecipeRefused, match=f"{arch} cannot take images of {size_px} px"):
        models.check(models.build(arch, 2), made)


def test_frozen_norms_keep_their_statistics_where_their_layers_learn_but_for_the_heads() -> None:
    network = models.build("resnet18", 2)
    network.freeze_to(0, norm=True)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    stepper = optimizer.build(network, stage(), 0.1)
    network.module(torch.randn(4, 3, 64, 64)).square().sum().backward()
    stepper.step()
    after = network.module.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    statistics = {name for name in after if "running_" in name or "num_batches" in name}
    assert {name for name in changed & statistics if not name.startswith("head.")} == set()
    assert {"head.0.running_mean", "head.4.running_var"} <= changed  # the head learns from nothing
    assert {"conv1.weight", "bn1.weight", "layer4.1.bn2.bias"} <= changed  # scales and shifts learn
