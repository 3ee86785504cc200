"""Addresses at which something else answers than a model of ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.score.endpoint import open_endpoint
from jobs.score.exchange import Exchange
from jobs.score.patience import Patience
from models.errors import ConfigError, EndpointError

INDEX = "/v2/repository/index"


@contextmanager
def answering(answers: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """Answer paths so, and others with 404; gives the address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refusal(answers: dict[str, tuple[int, bytes]]) -> Exception:
    """Return what is raised for a server that answers so."""
    with answering(answers) as server:
        exchange = Exchange(None, Patience(5), timeout=5, connections=1)
        with (
            closing(exchange),
            pytest.raises((ConfigError, EndpointError)) as raised,
        ):
            open_endpoint(f"{server}/v2/models/caps", exchange)
        return raised.value


@pytest.mark.parametrize("status", [413, 415, 422])
def test_a_refused_question_is_told(status: int) -> None:
    error = refusal({"/v2/models/caps/config": (status, b'{"error": "not here"}')})
    assert "/v2/models/caps/config is refused: " in str(error)
    assert "Expected the address of a Sightline model" in str(error)


@pytest.mark.parametrize(
    "answer", [(415, b"{}"), (200, b'{"models": []}'), (200, b"[1]"), (200, b'[{"x": 1}]')]
)
def test_an_index_of_another_form_names_what_is_expected(answer: tuple[int, bytes]) -> None:
    assert "Expected the address of a model, as http" in str(refusal({INDEX: answer}))


def test_an_index_names_the_models() -> None:
    error = refusal({INDEX: (200, b'[{"name": "lids", "state": "READY"}]')})
    assert str(error).endswith("/v2/models/lids")
