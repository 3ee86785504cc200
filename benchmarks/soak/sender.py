"""Send the mix at a rate, well behaved or not, and write down what became of every request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.soak.mix import BROKEN, LEFT, Kind
from benchmarks.wire import Address, Request
from cluster.resilience import BUFFER_BYTES

PATIENCE_SECONDS = 60.0
SLOW_SECONDS = 4.0  # for the body of a slow upload
SILENT_SECONDS = 5.0
MOST_UNDER_WAY = 200
NOT_SENT = "not sent"  # since the server owed too many answers already
TOO_LARGE = 65 << 20  # bytes; the limit of the serve file is 64 MiB
PIECE = 1 << 20
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
            (kind,) = self._chance.choices(self._mix, weights)
            if len(self._under_way) >= MOST_UNDER_WAY:
                self._seen.note(kind, NOT_SENT, 0.0, f"{MOST_UNDER_WAY} wait for answers")
                continue
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
                outcome, said = await self._exchange(request, kind)
        except TimeoutError:
            outcome, said = "no answer", f"nothing for {PATIENCE_SECONDS:g} s"
        # also what no server should say: a length that is no number, a head without an end
        except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError) as error:
            outcome, said = BROKEN, repr(error)
        self._seen.note(kind, outcome, time.monotonic() - started, said)

    async def _exchange(self, request: Request, kind: Kind) -> tuple[str, str]:
        is_odd = kind.manner != "whole" or kind.address is not None
        address = kind.address or self._address
        reader, writer = await self._connection(address, is_new=is_odd)
        host = f"{address[0]}:{address[1]}"
        try:
            if kind.manner in LEAVING:
                await LEAVING[kind.manner](request.encode(host), writer)
                writer.close()
                return LEFT, ""
            # An answer may come before the request is there, and ends it.
            sending = asyncio.create_task(SENDING[kind.manner](request, host, writer))
            try:
                status, body, is_kept = await _read(reader)
                is_sent = sending.done()
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await sending
        except BaseException:
            writer.transport.abort()
            raise
        if is_kept and is_sent and not is_odd:
            self._idle.append((reader, writer))
        elif is_sent:
            writer.close()
        else:
            writer.transport.abort()  # closing would send the rest first
        return status, body

    async def _connection(
        self, address: Address, *, is_new: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle and not is_new:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*address)


async def _whole(request: Request, host: str, writer: asyncio.StreamWriter) -> None:
    writer.write(request.encode(host))
    await writer.drain()


async def _slowly(request: Request, host: str, writer: asyncio.StreamWriter) -> None:
    data = request.encode(host)
    size = max(1, len(data) // 20)
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        await asyncio.sleep(SLOW_SECONDS / 20)


async def _declaring_too_much(request: Request, host: str, writer: asyncio.StreamWriter) -> None:
    """Send a header with a length that is refused, and as much as HAProxy waits for. A client that
    went on would lose the answer now and then, since the connection ends under it.
    """
    writer.write(_head(request, host, f"Content-Length: {TOO_LARGE}"))
    writer.write(bytes(2 * BUFFER_BYTES))
    await writer.drain()


async def _sending_too_much(request: Request, host: str, writer: asyncio.StreamWriter) -> None:
    """Send more than is allowed without having said so."""
    writer.write(_head(request, host, "Transfer-Encoding: chunked"))
    for _ in range(TOO_LARGE // PIECE):
        writer.write(f"{PIECE:x}\r\n".encode() + bytes(PIECE) + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def _head(request: Request, host: str, framing: str) -> bytes:
    head = request.encode(host).partition(b"\r\n\r\n")[0].decode()
    lines = [line for line in head.split("\r\n") if not line.startswith("Content-Length")]
    return "\r\n".join([*lines, framing]).encode() + b"\r\n\r\n"


async def _half(data: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(data[: len(data) // 2])
    await writer.drain()


async def _all(data: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(data)
    await writer.drain()


async def _nothing(data: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(SILENT_SECONDS)


# What a client does before it reads its answer, and what one does that does not wait for any.
SENDING = {
    "whole": _whole,
    "slow": _slowly,
    "declares too much": _declaring_too_much,
    "sends too much": _sending_too_much,
}
LEAVING = {"leaves early": _half, "leaves late": _all, "silent": _nothing}


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
