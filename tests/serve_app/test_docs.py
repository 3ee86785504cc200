"""The page that shows the calls, and the documents it reads: served by us alone, and turned off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from models.errors import ConfigError
from serve_app.catalog import build
from serve_app.config import CatalogOptions, ServeOptions, parse_options
from serve_app.openapi.docs import FOLDER, catalog_docs
from serve_app.openapi.parts import SERVER
from serve_app.pages import page_routes
from serve_app.routing import Api
from tests.serve_app.documents import Document


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of the pages alone."""
    with TestClient(Api({**page_routes(), **catalog_docs()})) as client:
        yield client


def test_the_page_may_load_nothing_but_our_own_files(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_file_that_the_page_names_is_there(client: TestClient) -> None:
    page = client.get("/docs").text
    names = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert len(names) > 4
    for name in names:
        assert client.get(f"/{name.removeprefix('./')}").status_code == 200, name
    script = client.get("/docs/docs.js").text
    for name in re.findall(r'from "(/[^"]+)"', script):
        assert client.get(name).headers["content-type"].startswith("text/javascript"), name


def test_the_page_names_no_outside_address_and_has_nothing_inline() -> None:
    for path in sorted(FOLDER.iterdir()):
        text = path.read_text()
        assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {SERVER}, path.name
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*src=)", text), path.name
        assert "innerHTML" not in text


def test_the_document_of_the_server_is_answered(client: TestClient) -> None:
    answer = client.get("/openapi.json")
    document = Document(answer.json())
    for path in ("/", "/docs", "/openapi.json"):
        document.check("GET", path, client.get(path))


def test_documents_are_on_unless_they_are_turned_off() -> None:
    assert parse_options(CatalogOptions, {}, "x").docs
    assert not parse_options(CatalogOptions, {"docs": False}, "x").docs
    assert parse_options(ServeOptions, {"bundle": "b"}, "x").docs
    with pytest.raises(ConfigError, match="docs"):
        build({"docs": "perhaps"})


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(FOLDER).iterdir()) < 20_000
