"""Networks by name: a body from torchvision, timm or our own, a head for the classes, and layer groups."""

from trainer.errors import RecipeRefused
from trainer.models import bodies
from trainer.models.bodies import OWN
from trainer.models.folding import frozen_forward
from trainer.models.heads import HEADS
from trainer.models.network import Network
from trainer.models.shapes import output_shapes
from trainer.models.summary import Row, lines, summary
from trainer.recipe import Recipe

__all__ = ["HEADS", "OWN", "Network", "Row", "build", "check", "frozen_forward", "lines", "summary"]


def build(arch: str, class_count: int, head: str = "concat_pool") -> Network:
    """The named network with random weights and `class_count` outputs. Raises RecipeRefused.

    `head` is "concat_pool", fast.ai's, or "linear"; our own networks, and those whose body gives no feature map, have a
    linear one whatever is asked (`Network.head_kind`).
    """
    return Network(arch, bodies.find(arch), head, class_count)


def check(network: Network, recipe: Recipe) -> None:
    """Refuse stages that do not fit the network, before anything is trained. Raises RecipeRefused."""
    count = network.group_count
    for stage in recipe.stages:
        if not -count <= stage.freeze_to < count:
            what = (
                f"Stage {stage.name!r} freezes to group {stage.freeze_to}, but {recipe.arch} has {count} layer groups"
            )
            raise RecipeRefused(what, f"Choose {-count} to {count - 1}")
        if isinstance(stage.lr, tuple) and len(stage.lr) != count:
            what = (
                f"Stage {stage.name!r} has {len(stage.lr)} learning rates, but {recipe.arch} has {count} layer groups"
            )
            raise RecipeRefused(what, "Give one rate, or one per group")
        try:
            output_shapes(network.module, stage.size_px)
        except (AssertionError, RuntimeError, ValueError) as error:  # shrunk to nothing, or made for one size only
            what = f"Stage {stage.name!r}: {recipe.arch} cannot take images of {stage.size_px} px: {error}"
            raise RecipeRefused(what.rstrip(".!"), "Change size_px or arch") from error
