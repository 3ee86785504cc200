"""The page as files: what is served, with which headers, and what may not stand in them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.pages import CONTENT_TYPES, FOLDER, page_routes
from serve_app.routing import Api

INDEX = (FOLDER / "index.html").read_text()
SCRIPTS = {path.name: path.read_text() for path in FOLDER.glob("*.js")}


@pytest.fixture
def client() -> Iterator[TestClient]:
    """The routes of the page alone."""
    with TestClient(Api(page_routes())) as client:
        yield client


def test_the_page_and_all_its_files_are_served_under_a_strict_policy(client: TestClient) -> None:
    paths = ["/", *(f"/page/{path.name}" for path in FOLDER.iterdir() if path.suffix != ".html")]
    assert len(paths) > 10
    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200
        suffix = "." + path.rpartition(".")[2] if path != "/" else ".html"
        assert answer.headers["content-type"] == CONTENT_TYPES[suffix]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["permissions-policy"] == "camera=(self)"


def test_a_file_that_a_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = client.get("/page/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert "content-length" not in again.headers
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/page", "/page/index.html", "/page/../pages.py", "/page/none"])
def test_nothing_but_the_files_of_the_page_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_nothing_stands_in_the_page_that_the_policy_forbids() -> None:
    assert re.findall(r"<script[^>]*>", INDEX) == ['<script type="module" src="page/main.js">'], (
        "one script, and none inside the page"
    )
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", INDEX)


def test_no_file_names_an_address_or_makes_markup_of_text() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(?m)^\s*//.*$|\s// .*$", "", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_every_element_that_a_script_asks_for_is_in_the_page() -> None:
    ids = re.findall(r'\sid="([^"]+)"', INDEX)
    assert len(ids) == len(set(ids))
    asked = {
        name for text in SCRIPTS.values() for name in re.findall(r'\bfind\("([\w-]+)"\)', text)
    }
    made = set(re.findall(r'id: "([\w-]+)"|tick\("([\w-]+)"', SCRIPTS["edits.js"]))
    assert asked - set(ids) - {name for pair in made for name in pair} == set()
    assert len(asked) > 30
