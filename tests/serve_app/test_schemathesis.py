"""Schemathesis, a client nobody here wrote: it makes requests out of the OpenAPI documents, good
and bad, and holds the answers against them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.environment import free_port
from models.kinds import KINDS
from serve_app.asgi import build_asgi
from serve_app.keys import Keys
from serve_app.model import open_served
from tests.serve_app.conftest import ROOT as MOUNT
from tests.serve_app.conftest import Server
from tests.serve_app.test_openapi import OFFICE, OFFICE_ROW, serve_options

ROOT = Path(__file__).parents[2]
SEED = "2026"
NUM_EXAMPLES = "8"  # made up for each call, beside the cases that follow from its schema
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
FEWEST = {"generic": 300, "embedding": 150, "dynamic": 500}
SECONDS_TO_START = 30


def schemathesis(url: str, folder: Path, *more: str) -> int:
    """Run it against a document, assert that it finds nothing, and return the number of cases."""
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", url),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--seed", SEED, "--max-examples", NUM_EXAMPLES, "--generation-database", "none"),
            *("--header", f"X-API-Key: {OFFICE}", "--no-color", "--warnings", "off"),
            *more,
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.serve_app.schemathesis_hooks",
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert cases is not None, done.stdout
    assert cases[1] == cases[2]
    return int(cases[1])


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serve an application as Serve mounts it, and give its address."""

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": MOUNT}, receive, send)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(mounted, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}{MOUNT}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_request_that_follows_from_the_document_is_answered_against_it(
    kind: str, tmp_path: Path
) -> None:
    model = open_served(serve_options(tmp_path, kind))
    with listening(build_asgi(model, Keys(OFFICE_ROW))) as url:
        num_cases = schemathesis(f"{url}/openapi.json", tmp_path)
    model.close()
    print(f"{kind}: {num_cases} cases")
    assert num_cases > FEWEST[kind]


@pytest.mark.e2e
@pytest.mark.ray
def test_the_catalog_answers_as_its_document_says(server: Server, tmp_path: Path) -> None:
    num_cases = schemathesis(f"{server.url}/openapi.json", tmp_path)
    print(f"catalog: {num_cases} cases")
    assert num_cases > 50
