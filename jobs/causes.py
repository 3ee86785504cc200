"""Find the error that was raised on purpose inside the layers that Ray wraps around it."""

from __future__ import annotations

from collections.abc import Iterator

from models.errors import SightlineError


def find_cause(error: BaseException) -> SightlineError | None:
    """Return our own error inside what Ray raised, if there is one: not the copy of Ray's that is
    of both classes and says no more than a traceback, nor can be handed on to another task.
    """
    found = (each for each in walk(error) if isinstance(each, SightlineError))
    return next((each for each in found if not hasattr(each, "cause")), None)


def walk(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that are inside it, nearest first.

    Ray's tasks keep theirs in `cause`, Ray Train one per worker in `worker_failures`, of a worker
    that died in `health_check_failure`, and of one that died as it began in `controller_failure`.
    """
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        current = pending.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        yield current
        seen.add(id(current))
        failures = getattr(current, "worker_failures", None) or {}
        names = ("cause", "health_check_failure", "controller_failure", "__cause__", "__context__")
        pending += [*(getattr(current, name, None) for name in names), *failures.values()]
