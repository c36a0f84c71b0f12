"""Batches in a given order, put together by threads while the network works on the one before.

Threads, not processes: the work is in torch kernels, which release the interpreter's lock, and nothing passes through
/dev/shm.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from trainer.data.pixels import Pixels

Batch = tuple[Tensor, Tensor]


class Batches:
    """One pass over `order`. `transform(image, index)` makes every image the same size and draws from `index` alone."""

    def __init__(
        self,
        pixels: Pixels,
        order: Sequence[int],
        batch_size: int,
        transform: Callable[[Tensor, int], Tensor],
        workers: int,
    ) -> None:
        self._pixels = pixels
        self._parts = parts(order, batch_size)
        self._transform = transform
        self._workers = workers
        self.waited_s = 0.0  # how long the loop that takes the batches stood still for them

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        """images uint8 (batch, channel, height, width) and labels int64 (batch,)."""
        made = map(self._batch, self._parts) if self._workers == 0 else self._made_ahead()
        while True:
            started = time.perf_counter()
            batch = next(made, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _made_ahead(self) -> Iterator[Batch]:
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self._workers)
        try:
            for part in self._parts:
                waiting.append(pool.submit(self._batch, part))
                if len(waiting) > 2 * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, part: Sequence[int]) -> Batch:
        images = torch.stack([self._transform(self._pixels[index], index) for index in part])
        return images, torch.tensor([self._pixels.labels[index] for index in part])


def parts(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """The order cut into batches. A last batch of one joins the batch before it: BatchNorm has no variance of one."""
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]
