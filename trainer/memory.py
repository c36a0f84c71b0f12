"""A step that doesn't fit into the GPU's memory: the error names a batch that does."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from trainer.errors import OutOfMemory
from trainer.lesson import Lesson
from trainer.run import Run


@contextlib.contextmanager
def explained(run: Run, taught: Lesson) -> Iterator[None]:
    """Translate torch's error. Raises OutOfMemory, with the largest batch that passed a step."""
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        original = error
    # Outside of the handler: while an exception is handled, its traceback holds the step's tensors.
    stage = taught.stage
    original.__traceback__ = None
    # Several processes would have to try together, and one that has run out of memory can't.
    fits = largest_batch(stage.batch_size, lambda size: _step(run, taught, size)) if run.team.size == 1 else None
    what = f"{stage.batch_size} images at {stage.size_px} px do not fit into the memory of {run.device.name}"
    if fits is None:
        raise OutOfMemory(what, f"Halve it: --set batch_size={max(stage.batch_size // 2, 2)}") from original
    if not fits:
        raise OutOfMemory(f"{what}, nor do two", "Choose a smaller size_px or arch") from original
    batches = -(-stage.batch_size * stage.accumulate // fits)
    next_step = f"{fits} passed a step: --set batch_size={fits} accumulate={batches} gives steps of the same size"
    raise OutOfMemory(what, next_step) from original


def largest_batch(too_many: int, step: Callable[[int], None]) -> int:
    """The first of the halves of `too_many` with which `step` doesn't run out of memory; 0 if none of two or more."""
    size = too_many // 2
    while size > 1:  # BatchNorm needs two
        try:
            step(size)
            return size
        except torch.OutOfMemoryError:
            size //= 2
    return 0


def _step(run: Run, taught: Lesson, size: int) -> None:
    """One forward and backward pass with the first images of the set."""
    taught.trainee.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    part = [index % len(run.train) for index in range(size)]
    [(inputs, targets)] = list(taught.shown(0, [part]))
    taught.loss_of(0, 0, inputs, targets.to(run.torch_device)).backward()  # type: ignore[no-untyped-call]
    taught.trainee.optimizer.zero_grad(set_to_none=True)
