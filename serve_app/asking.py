"""Questions that may never be answered, asked on a thread of their own: Serve's controller may be
dead or stopped, and what Serve offers for it waits without an end on the thread that calls.

Who waits gives up by a timeout of its own; the question stays, and whoever asks the same meanwhile
waits for the same answer, so that questions do not pile up. It knows nothing of Serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

from serve_app.threads import Threads

Answer = TypeVar("Answer")


class Asking:
    """Asks one question after the other, each once at a time."""

    def __init__(self) -> None:
        """Start the thread, which ends with the process."""
        self._threads = Threads(1, "asking")
        self._asked: dict[Hashable, asyncio.Future[Any]] = {}

    async def answer(self, ask: Callable[..., Answer], *arguments: Hashable) -> Answer:
        """Return what `ask` returns or raise what it raises, whenever that is."""
        question = (ask, *arguments)
        asked: asyncio.Future[Answer] | None = self._asked.get(question)
        if asked is None:
            asked = self._asked[question] = self._threads.run(ask, *arguments)
            asked.add_done_callback(partial(self._forget, question))
        # Shielded: one who gives up must not take the answer away from the others.
        return await asyncio.shield(asked)

    def _forget(self, question: Hashable, _: asyncio.Future[Any]) -> None:
        del self._asked[question]
