"""Ask a server over HTTP, in a closed loop or at a fixed rate.

In a closed loop each connection sends a request, waits for the answer, sends the next: `wrk` does
it where it is installed (`apt install wrk`), since it costs next to nothing of the CPU that is
being measured; else `benchmarks.generator` does, a process of its own. Which of the two it was
stands in the report. A fixed rate is always the bundled generator's: wrk has no open loop.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.tally import Load, Rate
from benchmarks.wire import Request, raw_requests, write_requests

MAX_CONNECTIONS = 512  # of an open loop

# Statuses are counted by each thread and added up at the end.
WRK_SCRIPT = """
local requests, count, position, threads = {}, 0, 0, {}
num_ok, num_429, num_other = 0, 0, 0
function setup(thread)
  threads[#threads + 1] = thread
end
function init(args)
  for path in io.lines("FILES") do
    local file = io.open(path, "rb")
    count = count + 1
    requests[count] = file:read("*a")
    file:close()
  end
end
function request()
  position = position % count + 1
  return requests[position]
end
function response(status)
  if status == 200 then num_ok = num_ok + 1
  elseif status == 429 then num_429 = num_429 + 1
  else num_other = num_other + 1 end
end
function done(summary, latency, requests)
  local ok, refused, other, errors = 0, 0, 0, summary.errors
  for _, thread in ipairs(threads) do
    ok = ok + thread:get("num_ok")
    refused = refused + thread:get("num_429")
    other = other + thread:get("num_other")
  end
  other = other + errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '\\n{"per_second": %f, "p50_ms": %f, "p99_ms": %f, ' ..
    '"num_ok": %d, "num_429": %d, "num_other": %d}\\n',
    ok * 1e6 / summary.duration, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    ok, refused, other))
end
"""

__all__ = ["Load", "Rate", "generator_name", "run_count", "run_load", "run_rate", "run_requests"]


def generator_name() -> str:
    """Return which generator this machine uses in a closed loop."""
    return "wrk" if shutil.which("wrk") else "bundled"


def run_load(
    url: str, images: Path, *, connections: int, seconds: float, environment: Mapping[str, str]
) -> Load:
    """Send the images of a folder to `url` as raw bodies, in a closed loop."""
    requests = raw_requests(urlsplit(url).path, images)
    return run_requests(
        url, requests, connections=connections, seconds=seconds, environment=environment
    )


def run_requests(
    url: str,
    requests: Sequence[Request],
    *,
    connections: int,
    seconds: float,
    environment: Mapping[str, str],
) -> Load:
    """Send prepared requests to the host of `url` in turns, in a closed loop."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_requests(requests, urlsplit(url).netloc, Path(folder))
        if not shutil.which("wrk"):
            output = _run_bundled(url, Path(folder), connections, seconds, environment)
        else:
            output = _run_wrk(url, files, connections, seconds, environment)
    return Load(**json.loads(output))


def run_count(
    url: str,
    requests: Sequence[Request],
    *,
    connections: int,
    num_requests: int,
    environment: Mapping[str, str],
) -> Load:
    """Send prepared requests in a closed loop until so many are answered: the bundled generator's,
    since wrk knows only times.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_requests(requests, urlsplit(url).netloc, Path(folder))
        extra = ("--count", str(num_requests))
        output = _run_bundled(url, Path(folder), connections, None, environment, *extra)
    return Load(**json.loads(output))


def run_rate(
    url: str,
    requests: Sequence[Request],
    *,
    per_second: float,
    seconds: float,
    environment: Mapping[str, str],
    max_connections: int = MAX_CONNECTIONS,
    warm_up_seconds: float = 0.0,
) -> Rate:
    """Send prepared requests to the host of `url` at a fixed rate, whatever becomes of them. What
    is due in the warm-up is not counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_requests(requests, urlsplit(url).netloc, Path(folder))
        extra = ("--per-second", str(per_second), "--warm-up-seconds", str(warm_up_seconds))
        output = _run_bundled(url, Path(folder), max_connections, seconds, environment, *extra)
    return Rate(**json.loads(output))


def _run_bundled(
    url: str,
    folder: Path,
    connections: int,
    seconds: float | None,
    environment: Mapping[str, str],
    *extra: str,
) -> str:
    parts = urlsplit(url)
    command = [
        *(sys.executable, "-m", "benchmarks.generator"),
        *("--host", parts.hostname or "127.0.0.1", "--port", str(parts.port or 80)),
        *("--requests", str(folder), "--connections", str(connections)),
        *(() if seconds is None else ("--seconds", str(seconds))),
        *extra,
    ]
    return _last_line(command, environment)


def _run_wrk(
    url: str,
    files: Sequence[Path],
    connections: int,
    seconds: float,
    environment: Mapping[str, str],
) -> str:
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "files.txt"
        listed.write_text("".join(f"{path.absolute()}\n" for path in files))
        script = Path(folder) / "script.lua"
        script.write_text(WRK_SCRIPT.replace("FILES", str(listed)))
        command = [
            *("wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s"),
            *("--timeout", "60s", "-s", str(script), url),
        ]
        return _last_line(command, environment)


def _last_line(command: Sequence[str], environment: Mapping[str, str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {result.stderr[-1000:]}")
    return result.stdout.strip().splitlines()[-1]
