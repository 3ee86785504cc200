"""What the audit's page does in a browser: rows are filtered and sorted, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.data.audit.config import AuditConfig
from jobs.data.audit.findings import Finding, in_order
from jobs.data.audit.page import render_page
from jobs.data.audit.report import Report
from jobs.data.split import SPLITS
from tests.browser import WIDTHS, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect: Any = api.expect

pytestmark = pytest.mark.e2e

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
LONG = "line-4/" + "a-very-long-name-" * 12 + ".jpg"
FINDINGS = [
    Finding("dark", "too dark", "a.jpg", "good", "train", score=0.5, row=0),
    Finding("dark", "too dark", "b.jpg", "bad", "test", score=0.25, row=1),
    Finding("dark", "black", "c.jpg", "good", "test", score=0.125, row=2),
    Finding("dark", "not measured", LONG, "good", "train", row=3),
    Finding("copy", "the same bytes", "d.jpg", "good", "train", other_path="e.jpg", row=4),
    Finding("few_images", "12 images", label="bad"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(params=list(WIDTHS))
def page(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The report as it lies on a disk, without a network, on a phone and on a desk."""
    counts: dict[str, dict[str, int]] = {
        label: {split: 3 for split in SPLITS} for label in ("good", "bad")
    }
    report = Report("s3://cameras/line-4", "today", 18, counts, in_order(FINDINGS))
    file = tmp_path / "report.html"
    pictures = {one.row: PIXEL for one in FINDINGS if one.row is not None}
    file.write_text(render_page(report, pictures, AuditConfig()), encoding="utf-8")
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(file.as_uri())
    yield page
    excess = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert not problems
    assert excess <= 0, f"the page is {excess} pixels wider than the screen"


def choose(page: Page, field: str, value: str) -> None:
    page.locator(f"select[data-filter={field}]").select_option(value)


def shown(page: Page) -> list[str]:
    """Return the paths of the images whose rows are to be seen, in their order."""
    return page.locator("tr[data-row]:visible .path > bdi").all_inner_texts()


def test_all_is_shown_and_counted_at_first(page: Page) -> None:
    expect(page.locator("#shown")).to_have_text("6 of 6 rows")
    assert len(shown(page)) == 5
    assert page.locator("img").evaluate_all("all => all.every(each => each.naturalWidth > 0)")


def test_filters_work_together_and_hide_what_is_left_empty(page: Page) -> None:
    choose(page, "label", "good")
    expect(page.locator("#shown")).to_have_text("4 of 6 rows")
    expect(page.locator("#few_images")).to_be_hidden()
    choose(page, "split", "train")
    assert set(shown(page)) == {"a.jpg", LONG, "d.jpg"}
    choose(page, "finding", "dark")
    assert set(shown(page)) == {"a.jpg", LONG}
    expect(page.locator("#copy")).to_be_hidden()
    page.locator("[data-filter=text]").fill("NOT Measured")
    assert shown(page) == [LONG]
    page.locator("[data-filter=text]").fill("nobody")
    expect(page.locator("#shown")).to_have_text("0 of 6 rows")
    expect(page.locator(".kind:visible")).to_have_count(0)
    page.locator("[data-filter=text]").fill("")
    for field in ("label", "split", "finding"):
        choose(page, field, "")
    expect(page.locator("#shown")).to_have_text("6 of 6 rows")


def test_rows_are_sorted_by_number_and_by_text_with_mouse_and_keys(page: Page) -> None:
    heads = page.locator("#dark th")
    score, path = (heads.filter(has_text=name) for name in ("score", "path"))

    def order() -> list[str]:
        return page.locator("#dark tbody .path > bdi").all_inner_texts()

    score.click()
    assert order() == ["c.jpg", "b.jpg", "a.jpg", LONG]
    assert score.get_attribute("aria-sort") == "ascending"
    score.press("Enter")
    assert order() == ["a.jpg", "b.jpg", "c.jpg", LONG]  # what has no score stays last
    path.press("Enter")
    assert order() == ["a.jpg", "b.jpg", "c.jpg", LONG]
    assert score.get_attribute("aria-sort") is None


def test_a_filter_holds_for_rows_that_are_sorted_afterwards(page: Page) -> None:
    choose(page, "split", "test")
    page.locator("#dark th").filter(has_text="score").click()
    assert shown(page) == ["c.jpg", "b.jpg"]
