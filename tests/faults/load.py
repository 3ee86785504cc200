"""Clients that ask again and again over raw sockets, and write down what became of every request.

Nothing is tried again here and nothing is hidden: a connection that breaks counts against the
request that was on it. Each client sends at a rate, so that a service that fails at once is not
asked more often than one that answers. A body is sent in two parts with a pause between, as it
arrives from afar: what a proxy holds when it opens the way to a replica is not the whole of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

OK = "200"
# What becomes of a request that no status answers.
REFUSED = "refused"  # no connection: nothing was sent
RESET, CUT, SILENT = "reset", "cut short", "no answer"
LOST = (RESET, CUT, SILENT)  # sent, and never answered
FIRST_PART = 14_000  # bytes: what a TCP connection sends at first
PAUSE_SECONDS = 0.002
PATIENCE_SECONDS = 30.0
CLIENTS = 12
QUIET_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """One request: when it was asked and answered (seconds, monotonic), and what came of it."""

    asked: float
    answered: float
    kind: str  # a status, or a word above
    version: int | None = None
    revision: int | None = None
    said: str = ""  # the beginning of a refusal


@dataclass
class Seen:
    """What all clients met so far."""

    outcomes: list[Outcome] = field(default_factory=list)

    def since(self, when: float) -> list[Outcome]:
        """Return what was asked after a moment."""
        return [outcome for outcome in self.outcomes if outcome.asked >= when]

    @property
    def kinds(self) -> Counter[str]:
        """How many requests came to which end."""
        return Counter(outcome.kind for outcome in self.outcomes)


@contextmanager
def load(
    url: str, body: bytes, *, clients: int = CLIENTS, per_second: float = 90
) -> Iterator[Seen]:
    """Keep asking `url` for the length of the context; every request is answered or given up
    before it ends.
    """
    seen, done = Seen(), threading.Event()
    with ThreadPoolExecutor(1, "load") as pool:
        asking = pool.submit(
            asyncio.run, _ask_all(url, body, clients, per_second, done.is_set, seen)
        )
        try:
            yield seen
        finally:
            done.set()
            ended = time.monotonic()
            asking.result()  # a client that breaks would ask no more, and nothing would fail
    check_asked_until(ended, seen)


def check_asked_until(ended: float, seen: Seen) -> None:
    """Raise where nobody asked any more at the end: then nothing is known of what came last."""
    if not seen.since(ended - QUIET_SECONDS):
        raise RuntimeError(f"nothing was asked in the last {QUIET_SECONDS:g} s of the load")


async def _ask_all(
    url: str, body: bytes, clients: int, rate: float, done: Callable[[], bool], seen: Seen
) -> None:
    period = clients / rate
    each = (
        _Client(url, body).ask_until(done, period, position / rate, seen)
        for position in range(clients)
    )
    await asyncio.gather(*each)


class _Client:
    """One client on one connection, which it keeps while the server lets it."""

    def __init__(self, url: str, body: bytes) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._address = (parts.hostname, parts.port)
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        self._body = body
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask_until(
        self, done: Callable[[], bool], period: float, wait: float, seen: Seen
    ) -> None:
        """Ask every `period` seconds, later where an answer takes longer."""
        due = time.monotonic() + wait
        while not done():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asked = time.monotonic()
            due = max(due + period, asked)
            kind, answer = await self._ask()
            said = answer if isinstance(answer, dict) else {}
            seen.outcomes.append(
                Outcome(
                    asked,
                    time.monotonic(),
                    kind,
                    said.get("version"),
                    said.get("label_revision"),
                    "" if kind == OK else str(answer)[:200],
                )
            )
        self._hang_up()

    async def _ask(self) -> tuple[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._exchange()
        except TimeoutError:
            self._hang_up()
            return SILENT, f"nothing for {PATIENCE_SECONDS:g} s"

    async def _exchange(self) -> tuple[str, Any]:
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection(*self._address)
            except OSError as error:
                return REFUSED, str(error)
        reader, writer = self._streams
        try:
            writer.write(self._head + self._body[:FIRST_PART])
            await writer.drain()
            if len(self._body) > FIRST_PART:
                await asyncio.sleep(PAUSE_SECONDS)
                writer.write(self._body[FIRST_PART:])
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            self._hang_up()
            return RESET, repr(error)
        status, headers = _parse(head)
        try:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        except (OSError, asyncio.IncompleteReadError) as error:
            self._hang_up()
            return CUT, repr(error)
        if headers.get("connection", "").lower() == "close":
            self._hang_up()
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = body.decode(errors="replace")
        if status == OK and not (isinstance(answer, dict) and answer.get("label")):
            return CUT, f"200 without a label: {answer!r}"
        return status, answer

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first.split(" ")[1], {name.strip().lower(): value.strip() for name, _, value in pairs}
