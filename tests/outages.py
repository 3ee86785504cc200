"""An S3 server that answers 503 for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic

import httpx


class Outage(ThreadingHTTPServer):
    """Passes requests on to an S3 server, but answers 503 until a moment that each test sets."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind = behind
        self.ends = 0.0
        self.num_refused = 0

    @classmethod
    @contextmanager
    def before(cls, behind: str) -> Iterator[Outage]:
        """Serve for the length of the context."""
        with cls(behind) as outage:
            threading.Thread(target=outage.serve_forever, args=(0.01,), daemon=True).start()
            try:
                yield outage
            finally:
                outage.shutdown()

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.server_port}"


class Passing(BaseHTTPRequestHandler):
    """One request."""

    server: Outage

    def do_GET(self) -> None:
        """Refuse it, or have it answered."""
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if monotonic() < self.server.ends:
            self.server.num_refused += 1
            self._send(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        url = f"{self.server.behind}{self.path}"
        answer = httpx.request(self.command, url, headers=headers, content=body)
        self._send(answer.status_code, dict(answer.headers), answer.content)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
