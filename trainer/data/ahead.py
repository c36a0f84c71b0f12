"""Work done by threads before its result is asked for.

Threads, not processes: the work is in Pillow's and torch's kernels, which release the interpreter's lock, and nothing
passes through /dev/shm.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, depth: int
) -> Generator[Result, None, None]:
    """`work` of each item, in the items' order, by that many threads at most `depth` items in advance; 0: when asked.

    Closed early, it drops what has not begun.
    """
    if workers == 0:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
