"""A step that does not fit into memory: which batch is named in its place."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import memory
from trainer.errors import OutOfMemory
from trainer.stage import Stage

CPU = torch.device("cpu")


def fits(most: int, tried: list[int]) -> Callable[[int], None]:
    """A step that runs out of memory above so many images."""

    def step(size: int) -> None:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return step


@pytest.mark.parametrize(("too_many", "found"), [(64, 8), (16, 8), (9, 4), (100, 6), (5, 2)])
def test_the_largest_batch_is_the_first_half_that_passes(too_many: int, found: int) -> None:
    tried: list[int] = []
    assert memory.largest_batch(too_many, fits(8, tried)) == found
    assert tried[-1] == found and all(size > 8 for size in tried[:-1])


def test_where_no_batch_passes_none_is_named() -> None:
    tried: list[int] = []
    assert memory.largest_batch(64, fits(0, tried)) == 0
    assert tried == [32, 16, 8, 4, 2]  # BatchNorm takes no single image


def test_another_error_of_the_trial_step_is_not_taken_for_a_lack_of_memory() -> None:
    def step(size: int) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        memory.largest_batch(8, step)


def short_of_memory(stage: Stage, most: int) -> tuple[Any, Any]:
    """A run and a lesson whose step runs out of memory above so many images, with a head that normalises."""
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    targets = torch.tensor([0, 1] * 16)

    def loss_of(epoch: int, batch: int, inputs: Tensor, wanted: Tensor) -> Tensor:
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return F.cross_entropy(head(inputs), wanted)

    trainee = SimpleNamespace(optimizer=torch.optim.SGD(head.parameters(), lr=0.1), device=CPU)
    run = SimpleNamespace(
        train=targets, torch_device=CPU, team=SimpleNamespace(device=CPU, size=1), device=SimpleNamespace(name="a GPU")
    )
    lesson = SimpleNamespace(
        stage=stage,
        trainee=trainee,
        loss_of=loss_of,
        shown=lambda epoch, parts: [(torch.randn(len(part), 4), targets[part]) for part in parts],
    )
    return run, lesson


def explained(stage: Stage, most: int) -> OutOfMemory:
    run, lesson = short_of_memory(stage, most)
    with pytest.raises(OutOfMemory) as caught, memory.explained(cast(Any, run), cast(Any, lesson)):
        lesson.loss_of(0, 0, torch.randn(stage.batch_size, 4), torch.zeros(stage.batch_size, dtype=torch.int64))
    return caught.value


def test_out_of_memory_names_a_batch_that_passed_and_how_to_use_it() -> None:
    error = explained(Stage(batch_size=32), most=8)
    assert error.what == "32 images at 224 px do not fit into the memory of a GPU"
    assert error.next_step == "8 passed a step: --set batch_size=8 accumulate=4 gives steps of the same size"


def test_out_of_memory_keeps_the_size_of_steps_that_were_accumulated_already() -> None:
    assert "--set batch_size=8 accumulate=8 " in explained(Stage(batch_size=32, accumulate=2), most=8).next_step


@pytest.mark.parametrize("most", [0, 1])
def test_out_of_memory_with_two_images_is_told_though_batch_norm_takes_no_single_one(most: int) -> None:
    error = explained(Stage(batch_size=8), most)
    assert error.exit_code == 28
    assert "size_px" in error.next_step
