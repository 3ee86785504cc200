"""A browser, and the models it meets: that of the serve file, and one of each kind, of which the
embedding model asks for a key.

All fixtures end with this folder, since `tests.browser` keeps others from running an event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from serve_app.keys import ADMIN, INFER, new_key
from tests.browser import PATIENCE_MS, WIDTHS, open_browser
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import Server, run_application

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PLAIN, LABELS, LOOKS = "page-cells", "page-caps", "page-looks"


@dataclass(frozen=True)
class Site:
    """Where the page is, and the keys that its models take."""

    url: str
    admin_key: str
    infer_key: str

    @property
    def labels(self) -> str:
        """The address of the label calls."""
        return f"{self.url}/v2/models/{LABELS}/labels"

    def revision(self) -> int:
        """Return the newest label revision."""
        return int(httpx.get(self.labels, timeout=20).json()["revision"])

    def names(self) -> list[str]:
        """Return the names of the labels, whatever their status."""
        told = httpx.get(self.labels, timeout=20).json()
        return [label["name"] for label in told["map"]["labels"]]

    def change(self, *edits: dict[str, Any]) -> int:
        """Change labels behind the page's back; return the revision."""
        body = {"edits": list(edits), "author": "somebody else", "reason": "a test"}
        return self._write("PUT", self.labels, body)

    def reset(self) -> None:
        """Go back to the model's own classes."""
        first, now = (self._map(number) for number in (0, self.revision()))
        if now != first:
            self._write("POST", f"{self.labels}/rollback", {"revision": 0, "author": "a test"})

    def _map(self, number: int) -> Any:
        return httpx.get(f"{self.labels}/revisions/{number}", timeout=20).json()["map"]

    def _write(self, method: str, url: str, body: dict[str, Any]) -> int:
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        answer = httpx.request(method, url, json=body, headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["revision"])


@pytest.fixture(scope="package")
def site(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The serve file's applications and three models more."""
    from ray import serve

    # Here, because they load torch, which no other test of serving needs.
    from jobs.evaluate.page import render_page
    from tests.jobs.evaluate.answers import draw, judge, make_report

    folder = tmp_path_factory.mktemp("page")
    (admin_key, admin_row), (infer_key, infer_row) = (
        new_key("office", [ADMIN]),
        new_key("line-4", [INFER]),
    )
    (folder / "admins").write_text(admin_row)
    (folder / "callers").write_text(infer_row)
    common = {"replicas": 1, "num_cpus": 0.1}
    classes = ("good", "dented", "torn")
    report = render_page(make_report(judge(*draw(200), classes)))
    documents = {"report.html": report.encode(), "model_card.md": b"# caps"}
    args: dict[str, dict[str, Any]] = {
        PLAIN: {"bundle": tiny_bundle(folder, name=PLAIN, documents=documents)},
        LABELS: {
            "bundle": tiny_bundle(folder, name=LABELS, kind="dynamic", classes=classes),
            "label_store": str(folder / "labels"),
            "keys_file": str(folder / "admins"),
        },
        LOOKS: {
            "bundle": tiny_bundle(folder, name=LOOKS, kind="embedding", documents=documents),
            "keys_file": str(folder / "callers"),
        },
    }
    for name, own in args.items():
        application = {
            "import_path": "serve_app.app:build",
            "name": name,
            "route_prefix": f"/v2/models/{name}",
        }
        run_application(server, application, {**common, **own})
    yield Site(server.url, admin_key, infer_key)
    for name in args:
        serve.delete(name)


@pytest.fixture(scope="package")
def browser(site: Site) -> Iterator[Browser]:
    """The browser, once for all tests of the page."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(params=list(WIDTHS))
def page(browser: Browser, site: Site, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page on a phone and on a desk. Whatever a test does there: no error in a script, no
    request to anybody else, no file that is missing, nothing wider than the screen.
    """
    width, height = WIDTHS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, base_url=site.url, locale="en-GB"
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    problems: list[str] = []
    watch(page, site.url, problems)
    page.goto("/")
    yield page
    excess = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert not problems
    assert excess <= 0, f"the page is {excess} pixels wider than the screen"


def watch(page: Page, url: str, problems: list[str]) -> None:
    """Write down what must not happen on a page."""
    page.on("pageerror", lambda error: problems.append(f"a script failed: {error}"))

    def on_console(message: Any) -> None:
        # A refused image is one of those too, as it has to be; `on_response` looks at the others.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(f"on the console: {message.text}")

    def on_request(request: Any) -> None:
        if not request.url.startswith((f"{url}/", "data:", "blob:")):
            problems.append(f"a request to {request.url}")

    def on_response(response: Any) -> None:
        if response.status >= 400 and "/v2/" not in response.url:
            problems.append(f"{response.status} for {response.url}")

    page.on("console", on_console)
    page.on("request", on_request)
    page.on("response", on_response)
