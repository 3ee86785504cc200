"""A real HTTP server in a thread, whose answers and delays a test chooses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

Answer = tuple[int, float]  # status, seconds to think


@dataclass
class TinyServer:
    """What it was asked so far."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def tiny_server(
    answer: Callable[[int], Answer], *, is_chunked: bool = False
) -> Iterator[TinyServer]:
    """Serve; `answer` gets the number of the request and says the status and how long it takes."""
    state, numbering = TinyServer(), Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with numbering:  # two that come together have two numbers
                number = len(state.bodies)
                state.paths.append(self.path)
                state.headers.append(dict(self.headers))
                state.bodies.append(body)
            status, seconds = answer(number)
            time.sleep(seconds)
            if not status:  # hang up without an answer
                self.close_connection = True
                return
            self.send_response(status)
            if is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"4\r\n{}{}\r\n0\r\n\r\n")
                return
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing: generators hang up when their time is over."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    # It looks this often whether it is to end: every half a second by default.
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
