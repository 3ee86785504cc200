"""Find the error that was raised on purpose inside the layers that Ray wraps around it."""

from __future__ import annotations

from models.errors import SightlineError


def find_cause(error: BaseException) -> SightlineError | None:
    """Return our own error inside what Ray raised, if there is one.

    Ray's tasks keep it in `cause`, Ray Train one per worker in `worker_failures`.
    """
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        current = pending.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        if isinstance(current, SightlineError):
            return current
        seen.add(id(current))
        failures = getattr(current, "worker_failures", None) or {}
        pending += [
            *(getattr(current, "cause", None), current.__cause__, current.__context__),
            *failures.values(),
        ]
    return None
