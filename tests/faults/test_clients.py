"""Clients that mean harm or know no better: slow ones, ones that only connect, ones that leave."""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import simplejpeg

from tests.faults.conftest import Figures
from tests.faults.load import load
from tests.faults.report import row
from tests.faults.site import PREFIX, Site

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(240)]

MAX_REQUESTS = 16
NUM_SLOW = 100  # of each sort
SLOW_SECONDS = 45
NUM_IDLE = 10_000
MOST_OF_THEM = 5_000
LARGE_BODY = 4 << 20
AT_ONCE = 1 << 20  # of a large body: more than HAProxy waits for


def test_slow_clients_keep_nobody_out(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    site.serve({"bundle": f"{store}/tiny/1", "max_requests": MAX_REQUESTS}, replicas=1)
    head = f"POST {PREFIX}/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {{}}\r\n"
    kinds = {
        "headers": (head.format(1000).encode(), b"X-Slow: 1\r\n" * 100),
        "bodies": (head.format(2000).encode() + b"\r\n", bytes(2000)),
        "large bodies": (
            head.format(LARGE_BODY).encode() + b"\r\n" + bytes(AT_ONCE),
            bytes(2000),
        ),
    }
    slow = [
        (kind, Slow(site.port, *parts)) for kind, parts in kinds.items() for _ in range(NUM_SLOW)
    ]
    with load(f"{site.url}/classify", photo, per_second=60) as seen:
        began = time.monotonic()
        while time.monotonic() < began + SLOW_SECONDS:
            tick = time.monotonic()
            for _, client in slow:
                client.send_a_byte()
            time.sleep(max(0.0, tick + 1 - time.monotonic()))
    ended = Counter(f"{kind}: {client.answer or 'still there'}" for kind, client in slow)
    told = ", ".join(f"{count} of slow {what}" for what, count in ended.items())
    figures.append(row("300 slow clients", seen, note=told))
    assert figures[-1].failed == 0
    assert all(client.answer == "408" for _, client in slow), ended


class Slow:
    """A client that begins at once and then sends a byte now and then."""

    def __init__(self, port: int, begin: bytes, rest: bytes) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.settimeout(5)
        self._socket.sendall(begin)
        self._socket.setblocking(False)
        self._rest = rest
        self.answer = ""

    def send_a_byte(self) -> None:
        """Send the next byte, and look whether the server has had enough."""
        if self.answer:
            return
        try:
            self._socket.send(self._rest[:1])
            self._rest = self._rest[1:]
            said = self._socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self.answer = said.decode("latin-1").split(" ")[1] if said else "closed"
        self._socket.close()


def test_ten_thousand_idle_connections_keep_nobody_out_for_long(
    site: Site, store: Path, photo: bytes, figures: Figures
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < NUM_IDLE + 1000:
        pytest.skip(f"this machine lets a process open {most} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=1)
    url = f"{site.url}/classify"
    waited = []
    with load(url, photo, per_second=60) as seen, selectors.DefaultSelector() as opened:
        time.sleep(1)
        idle = []
        for _ in range(NUM_IDLE):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", site.port))
            opened.register(connection, selectors.EVENT_WRITE)
            idle.append(connection)
        began = time.monotonic()
        connected = 0
        while time.monotonic() < began + 20:
            connected = max(connected, sum(map(is_connected, idle)))
            asked = time.monotonic()
            assert httpx.post(url, content=photo, timeout=30).status_code == 200
            waited.append(time.monotonic() - asked)
            time.sleep(0.5)
        left = sum(is_open(connection) for connection in idle)
        for connection in idle:
            connection.close()
    note = (
        f"{connected:,} of them connected at once; a new client waited {max(waited):.1f} s at "
        f"most; {left} were left open after 20 s"
    )
    figures.append(row("10,000 idle connections", seen, note=note))
    assert figures[-1].failed == 0
    assert connected > MOST_OF_THEM


def is_connected(connection: socket.socket) -> bool:
    """Say whether a connection is there now."""
    try:
        connection.getpeername()
    except OSError:
        return False
    return is_open(connection)


def is_open(connection: socket.socket) -> bool:
    """Say whether the server has not closed the connection."""
    try:
        return connection.recv(4096) == b"?"
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_images_of_clients_that_have_left_are_not_decoded(
    site: Site, store: Path, figures: Figures, photo: bytes
) -> None:
    site.serve({"bundle": f"{store}/tiny/1"}, replicas=1)
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    large = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.repeat(100, 0).repeat(100, 1)))
    head = f"POST {PREFIX}/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(large)}\r\n\r\n"
    connections = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(60)]
    with load(f"{site.url}/classify", photo, clients=1, per_second=10) as seen:
        before = num_scored(site)
        for connection in connections:
            connection.sendall(head.encode() + large)
        time.sleep(0.05)
        for connection in connections:
            connection.close()
        time.sleep(5)
        scored = num_scored(site) - before
    scored -= len(seen.outcomes)
    note = f"{scored} of {len(connections)} that had left were scored"
    figures.append(row("clients that leave", seen, note=note))
    assert figures[-1].failed == 0
    assert scored < len(connections) / 4


def num_scored(site: Site) -> int:
    """Return how many images the model has scored."""
    counted = httpx.get(f"{site.url}/stats", timeout=10).json()
    return int(counted["model_stats"][0]["inference_count"])
