"""Work on threads, a little ahead of whoever takes the results, which come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[Thing], Result],
    things: Iterable[Thing],
    *,
    window: int,
    is_full: Callable[[Iterable[Result]], bool] = lambda results: False,
) -> Iterator[Result]:
    """Yield the results in the order of the things, with at most `window` of them taken ahead, and
    fewer where `is_full` says so of the results that wait.
    """
    waiting: deque[Future[Result]] = deque()
    for thing in things:
        waiting.append(pool.submit(function, thing))
        while waiting and (len(waiting) >= window or is_full(_ready(waiting))):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _ready(waiting: Iterable[Future[Result]]) -> Iterator[Result]:
    return (each.result() for each in waiting if each.done() and not each.exception())
