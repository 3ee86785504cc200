"""A closed loop of HTTP requests: each connection sends an image, waits for the answer, sends the
next.

`wrk` does it where it is installed (`apt install wrk`): it costs next to nothing of the CPU that is
being measured. Else the generator in this module does, a process of its own with one selector and
no HTTP library; which of the two it was stands in the report.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.ceiling import read_images

WRK_SCRIPT = """
local requests, count, position = {}, 0, 0
function init(args)
  for path in io.lines("FILES") do
    local file = io.open(path, "rb")
    count = count + 1
    requests[count] = wrk.format("POST", nil, {["Content-Type"] = "image/jpeg"}, file:read("*a"))
    file:close()
  end
end
function request()
  position = position % count + 1
  return requests[position]
end
"""
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Load:
    """What one run of load met."""

    per_second: float
    p50_ms: float
    p99_ms: float
    num_failed: int


def generator_name() -> str:
    """Return which generator this machine uses."""
    return "wrk" if shutil.which("wrk") else "bundled"


def run_load(
    url: str, images: Path, *, connections: int, seconds: float, environment: Mapping[str, str]
) -> Load:
    """Send the images of a folder to `url` in a closed loop."""
    if shutil.which("wrk"):
        return _run_wrk(url, images, connections, seconds, environment)
    command = [
        *(sys.executable, "-m", "benchmarks.load", "--url", url, "--images", str(images)),
        *("--connections", str(connections), "--seconds", str(seconds)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return Load(**json.loads(result.stdout))


def _run_wrk(
    url: str, images: Path, connections: int, seconds: float, environment: Mapping[str, str]
) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files.txt"
        files.write_text("".join(f"{path.absolute()}\n" for path in sorted(images.iterdir())))
        script = Path(folder) / "script.lua"
        script.write_text(WRK_SCRIPT.replace("FILES", str(files)))
        command = [
            *("wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--latency"),
            *("--timeout", "60s", "-s", str(script), url),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        )
    return parse_wrk(result.stdout)


def parse_wrk(text: str) -> Load:
    """Read what wrk prints."""

    def find(pattern: str) -> tuple[str, ...]:
        found = re.search(pattern, text)
        return found.groups() if found else ()

    refused = find(r"Non-2xx or 3xx responses: (\d+)")
    broken = find(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
    (rate,) = find(r"Requests/sec:\s+([\d.]+)")
    p50, p99 = (find(rf"{share}%\s+([\d.]+)(us|ms|s|m)\b") for share in (50, 99))
    return Load(
        per_second=float(rate),
        p50_ms=float(p50[0]) * UNITS[p50[1]],
        p99_ms=float(p99[0]) * UNITS[p99[1]],
        num_failed=sum(map(int, (*refused, *broken))),
    )


class _Connection:
    """One connection of the bundled generator."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._expected = 0
        self.started = 0.0

    def send(self, request: bytes) -> None:
        self.started = time.perf_counter()
        self._received, self._expected = b"", 0
        self.socket.sendall(request)

    def receive(self) -> bool | None:
        """Read what is there. None while the answer is incomplete, else whether it was a 200."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self._received += chunk
        if not self._expected:
            head, end, _ = self._received.partition(b"\r\n\r\n")
            if not end:
                return None
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            self._expected = len(head) + 4 + (int(length[1]) if length else 0)
        if len(self._received) < self._expected:
            return None
        return self._received.startswith(b"HTTP/1.1 200")


def generate(url: str, images: Path, connections: int, seconds: float) -> Load:
    """Run the bundled generator in this process."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\n"
    requests = [
        f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image
        for image in read_images(images)
    ]
    latencies: list[float] = []
    num_failed = position = 0
    started = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            connection = _Connection(address)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(requests[position % len(requests)])
            position += 1
        while time.perf_counter() < started + seconds:
            for key, _ in selector.select(timeout=1.0):
                connection = key.data
                is_good = connection.receive()
                if is_good is None:
                    continue
                latencies.append(time.perf_counter() - connection.started)
                num_failed += not is_good
                connection.send(requests[position % len(requests)])
                position += 1
    elapsed = time.perf_counter() - started
    cuts = statistics.quantiles(latencies, n=100)
    return Load(len(latencies) / elapsed, cuts[49] * 1e3, cuts[98] * 1e3, num_failed)


def main() -> int:
    """Be the bundled generator and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    load = generate(options.url, options.images, options.connections, options.seconds)
    print(json.dumps(vars(load)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
