"""The page of calls in a real browser: every model's document, readable, and what it says works."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import WIDTHS
from tests.serve_app.conftest import encode
from tests.serve_app.page.conftest import LABELS, Site, watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


@pytest.fixture(params=list(WIDTHS))
def docs(browser: Browser, site: Site, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page of calls on a phone and on a desk."""
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, base_url=site.url)
    page = context.new_page()
    problems: list[str] = []
    watch(page, site.url, problems)
    page.goto("/docs")
    yield page
    excess = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert not problems
    assert excess <= 0


def test_every_model_can_be_chosen_and_its_calls_are_shown(docs: Page) -> None:
    docs.wait_for_selector("#index")  # a call of the server
    names = docs.locator("#document option").all_text_contents()
    assert names[0] == "the server"
    assert {name.partition(",")[0] for name in names[1:]} >= {"elpv", LABELS}
    for name in names[1:]:
        docs.select_option("#document", label=name)
        docs.locator("main h2").filter(has_text=name).wait_for()
        calls = docs.locator("details.call").count()
        assert calls == (14 if name.startswith(LABELS) else calls)
        for summary in docs.locator("details.call > summary").all():
            summary.click()
        assert docs.locator("details.call[open]").count() == calls
        assert "undefined" not in docs.locator("main").inner_text()


def test_the_command_that_is_shown_scores_an_image(docs: Page, tmp_path: Path) -> None:
    docs.wait_for_selector("#index")
    docs.select_option("#document", label="elpv, version 1")
    docs.locator("#classify > summary").click()
    command = docs.locator("#classify pre").first.inner_text()
    (tmp_path / "photo.jpg").write_bytes(encode())
    told = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert '"label":"' in told.stdout
