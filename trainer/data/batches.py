"""Batches in a given order, put together by threads while the network works on the one before."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainer.data.ahead import ahead

Batch = tuple[Tensor, Tensor]


class Batches:
    """One pass over `parts`, each a batch's indices. `make(indices)` gives its inputs and is called in threads."""

    def __init__(
        self,
        parts: Sequence[Sequence[int]],
        targets: Tensor,
        make: Callable[[Sequence[int]], Tensor],
        workers: int,
    ) -> None:
        self.parts = parts
        self._targets = targets
        self._make = make
        self._workers = workers
        self.waited_s = 0.0  # how long the loop that takes the batches stood still for them

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        """The inputs that `make` gives, and the targets: int64 (batch,), or float32 (batch, class)."""
        made = ahead(self._batch, self.parts, self._workers, 2 * self._workers)
        while True:
            started = time.perf_counter()
            batch = next(made, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _batch(self, part: Sequence[int]) -> Batch:
        return self._make(part), self._targets[list(part)]


def each(image_of: Callable[[int], Tensor], pin: bool = False) -> Callable[[Sequence[int]], Tensor]:
    """Puts the images of single indices, all of one size, together; pinned, a GPU fetches them while it computes."""

    def together(part: Sequence[int]) -> Tensor:
        images = torch.stack([image_of(index) for index in part])
        return images.pin_memory() if pin else images

    return together


def parts(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """The order cut into batches. A last batch of one joins the batch before it: BatchNorm has no variance of one."""
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]
