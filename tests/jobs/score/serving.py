"""A tiny real model behind real HTTP without Ray: the application of `serve_app` under uvicorn, and
before it a border that can do what servers, proxies and networks do to a client.

In this process for most tests; `python -m tests.jobs.score.serving` where it has to be killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.environment import free_port
from models.bundle import open_bundle
from models.predictor import open_predictor
from serve_app.asgi import build_asgi
from serve_app.config import Limits, ServeOptions
from serve_app.model import ServedModel, open_served
from serve_app.replies import Reply, json_reply, send_reply

LIMITS = Limits(max_body_bytes=400_000, max_image_bytes=200_000, max_pixels=1_000_000, max_images=8)
SECONDS_TO_START = 60
ROOT = Path(__file__).parents[3]


@dataclass
class Border:
    """What stands before the applications. Tests set what it does, and read what it saw."""

    key: str = ""  # demanded where it is not empty
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # status, headers
    forbids_after: int = 10**9  # images, beyond which everything is answered 403
    poison: bytes = b""  # the server fails on bodies that hold it
    delay_seconds: float = 0.0
    versions: list[int] = field(default_factory=list)  # told instead of the real one, in turn
    seen: list[tuple[float, str]] = field(default_factory=list)  # when, and which path
    statuses: Counter[int] = field(default_factory=Counter)
    num_images: int = 0
    num_at_once: int = 0
    most_at_once: int = 0


class Site:
    """The applications of a server: models by name, and the catalog's index."""

    def __init__(self, models: dict[str, ServedModel], border: Border) -> None:
        self._apps: dict[str, ASGIApp] = {name: build_asgi(each) for name, each in models.items()}
        self.border = border

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        self.border.seen.append((time.monotonic(), path))
        if path == "/v2/repository/index":
            found = [
                {"name": n, "version": "1", "state": "READY", "reason": ""} for n in self._apps
            ]
            await send_reply(json_reply(found), send)
            return
        name = path.removeprefix("/v2/models/").partition("/")[0]
        if not path.startswith("/v2/models/") or name not in self._apps:
            await send_reply(json_reply({"error": "nothing here", "code": "not_found"}, 404), send)
            return
        at_border = None if path.endswith("/ready") else self._refusal(scope, path)
        if at_border is not None:
            self.border.statuses[at_border.status] += 1
            await send_reply(at_border, send)
            return
        border = self.border  # of the test that asks; the next one has another
        border.num_at_once += 1
        border.most_at_once = max(border.most_at_once, border.num_at_once)
        try:
            await self._answer(scope, receive, send, name)
        finally:
            border.num_at_once -= 1

    def _refusal(self, scope: Scope, path: str) -> Reply | None:
        border = self.border
        given = dict(scope["headers"]).get(b"authorization", b"").decode()
        if border.key and given != f"Bearer {border.key}":
            text, code = (
                ("unknown key", "unauthenticated") if given else ("no key", "unauthenticated")
            )
            return json_reply({"error": text, "code": code}, 401)
        if border.num_images >= border.forbids_after:
            return json_reply({"error": "not any more", "code": "forbidden"}, 403)
        if border.refusals and not path.endswith("/config"):
            status, headers = border.refusals.pop(0)
            return Reply(b"not now", status, "text/plain", headers)
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        border = self.border
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if border.delay_seconds and not scope["path"].endswith(("/config", "/ready")):
            await asyncio.sleep(border.delay_seconds)
        if border.poison and border.poison in body:
            border.statuses[500] += 1
            await send_reply(json_reply({"error": "it broke", "code": "internal"}, 500), send)
            return
        answer = bytearray()

        async def receive_again() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                border.statuses[message["status"]] += 1
                kept.append(message)
            else:
                answer.extend(message.get("body", b""))

        kept: list[Message] = []
        inner = {**scope, "root_path": f"/v2/models/{name}"}
        await self._apps[name](inner, receive_again, keep)
        value = orjson.loads(answer)
        if "results" in value:
            border.num_images += len(value["results"])
            if border.versions:
                value["version"] = border.versions.pop(0)
        await send_reply(json_reply(value, kept[0]["status"]), send)


@contextmanager
def served(site: Site, port: int = 0) -> Iterator[str]:
    """Serve in a thread of this process; gives the address."""
    port = port or free_port()
    config = uvicorn.Config(site, port=port, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + SECONDS_TO_START
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


class Process:
    """The same in a process of its own, which can be killed and started again."""

    def __init__(self, bundle: str, delay_seconds: float = 0.0) -> None:
        self._command = [sys.executable, "-m", "tests.jobs.score.serving", bundle]
        self._port = free_port()
        self._command += ["--port", str(self._port), "--delay", str(delay_seconds)]
        self.url = f"http://127.0.0.1:{self._port}/v2/models/tiny"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(self._command, cwd=ROOT)
        deadline = time.monotonic() + SECONDS_TO_START
        while wait and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/ready", timeout=2).status_code == 200:
                    return
            assert self._process.poll() is None, "the server ended"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a machine does that loses power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Be the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int)
    parser.add_argument("--delay", type=float)
    given = parser.parse_args()
    model = open_model(given.bundle)
    site: Any = Site({"tiny": model}, Border(delay_seconds=given.delay))
    uvicorn.run(site, port=given.port, log_level="critical", lifespan="off")


def open_model(bundle: str, label_store: str | None = None) -> ServedModel:
    """Return a bundle as a replica holds it."""
    options = ServeOptions(bundle=bundle, limits=LIMITS, threads=1, label_store=label_store)
    if label_store is not None:
        return open_served(options)
    return ServedModel(open_predictor(open_bundle(bundle), options.engine_options), options)


if __name__ == "__main__":
    main()
