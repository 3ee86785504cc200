"""Send the mix at a rate, well behaved or not, and write down what became of every request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.soak.mix import LEFT, Kind
from benchmarks.wire import Address, Request

PATIENCE_SECONDS = 60.0
SLOW_SECONDS = 4.0  # for the body of a slow upload
SILENT_SECONDS = 5.0
MOST_UNDER_WAY = 200
MAX_EXAMPLES = 5


@dataclass
class Seen:
    """What became of all requests so far."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: int = 0
    examples: list[str] = field(default_factory=list)  # of what was not right

    def note(self, kind: Kind, outcome: str, seconds: float, said: str) -> None:
        """Count a request."""
        self.outcomes[kind.name][outcome] += 1
        self.seconds[kind.name].append(seconds)
        if outcome not in kind.right:
            self.wrong += 1
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(f"{kind.name}: {outcome}: {said[:300]}")


class Sender:
    """A Poisson process of requests, each of a kind drawn by weight; the same in every run."""

    def __init__(self, address: Address, mix: Sequence[Kind], seen: Seen) -> None:
        self._address, self._mix, self._seen = address, mix, seen
        self._chance = random.Random(0)
        self._positions: Counter[str] = Counter()
        self._under_way: set[asyncio.Task[None]] = set()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def run(self, per_second: float, is_over: Callable[[], bool]) -> None:
        """Send until it is over, and wait for the answers."""
        due = time.monotonic()
        weights = [kind.weight for kind in self._mix]
        while not is_over():
            due += self._chance.expovariate(per_second)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(self._under_way) >= MOST_UNDER_WAY:
                continue  # the server hangs; what is under way will say so
            (kind,) = self._chance.choices(self._mix, weights)
            task = asyncio.create_task(self.send(kind))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)
        for _, writer in self._idle:
            writer.close()

    async def send(self, kind: Kind) -> None:
        """Send one request of a kind and count what becomes of it."""
        request = kind.requests[self._positions[kind.name] % len(kind.requests)]
        self._positions[kind.name] += 1
        started = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                outcome, said = await self._exchange(request, kind.manner)
        except TimeoutError:
            outcome, said = "no answer", f"nothing for {PATIENCE_SECONDS:g} s"
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome, said = "broken", repr(error)
        self._seen.note(kind, outcome, time.monotonic() - started, said)

    async def _exchange(self, request: Request, manner: str) -> tuple[str, str]:
        is_odd = manner != "whole"
        reader, writer = await self._connection(is_new=is_odd)
        data = request.encode(f"{self._address[0]}:{self._address[1]}")
        try:
            if manner == "silent":
                await asyncio.sleep(SILENT_SECONDS)
                return LEFT, ""
            if manner == "leaves early":
                writer.write(data[: len(data) // 2])
                await writer.drain()
                return LEFT, ""
            if manner == "slow":
                for start in range(0, len(data), max(1, len(data) // 20)):
                    writer.write(data[start : start + max(1, len(data) // 20)])
                    await writer.drain()
                    await asyncio.sleep(SLOW_SECONDS / 20)
            else:
                writer.write(data)
                await writer.drain()
            if manner == "leaves late":
                return LEFT, ""
            status, body, is_kept = await _read(reader)
        except BaseException:
            writer.close()
            raise
        if is_kept and not is_odd:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return status, body

    async def _connection(
        self, *, is_new: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle and not is_new:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._address)


async def _read(reader: asyncio.StreamReader) -> tuple[str, str, bool]:
    """Return status, the beginning of the body, and whether the connection may be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    else:
        chunks = []
        while size := int(await reader.readline(), 16):
            chunks.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        body = b"".join(chunks)
    is_kept = fields.get("connection") != "close"
    with contextlib.suppress(UnicodeDecodeError):
        return head.split(" ", 2)[1], body[:300].decode(), is_kept
    return head.split(" ", 2)[1], "", is_kept
