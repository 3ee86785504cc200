"""What a bundle says of itself, from the page: links to its report and its card, and a report that
works where it is opened, on its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serve_app.page.conftest import LABELS, LOOKS, PLAIN, Site
from tests.serve_app.page.test_images import pick

if TYPE_CHECKING:
    from playwright.sync_api import Page

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect: Any = api.expect

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


def open_report(page: Page) -> Page:
    pick(page, PLAIN)
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Report").click()
    report = opened.value
    report.wait_for_load_state()
    return report


def test_report_and_card_are_linked_where_the_bundle_has_them(page: Page) -> None:
    pick(page, PLAIN)
    expect(page.get_by_role("link", name="Model card")).to_be_visible()
    pick(page, LABELS)
    expect(page.get_by_role("link", name="Report")).to_be_hidden()


def test_a_report_opens_in_an_origin_of_its_own_and_fits_the_screen(page: Page) -> None:
    page.evaluate("sessionStorage.setItem('secret', 'x')")
    report = open_report(page)
    assert report.evaluate("window.origin") == "null"
    with pytest.raises(api.Error, match=r"sandboxed|denied"):
        report.evaluate("sessionStorage.getItem('secret')")
    excess = report.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert excess <= 0
    report.close()


def test_the_slider_moves_the_figures_without_a_server(page: Page) -> None:
    report = open_report(page)
    report.context.set_offline(True)
    expect(report.locator("#now-answered")).to_have_text("100.0%")
    before = report.locator("[data-right='0']").inner_text()
    line = report.locator("#threshold-line")
    left = line.get_attribute("x1")
    report.locator("#threshold").fill("90")
    expect(report.locator("#threshold-shown")).to_have_text("0.90")
    expect(report.locator("#now-answered")).not_to_have_text("100.0%")
    assert line.get_attribute("x1") != left
    assert report.locator("[data-right='0']").inner_text() != before
    report.context.set_offline(False)
    report.close()


def test_a_table_is_sorted_by_what_its_cells_stand_for(page: Page) -> None:
    report = open_report(page)
    heads = report.locator("#labels th")
    column = heads.all_inner_texts().index("recall")
    cells = report.locator(f"#labels tbody td:nth-child({column + 1})")

    def values() -> list[float]:
        return [float(cell.get_attribute("data-value") or "inf") for cell in cells.all()]

    heads.nth(column).click()
    assert values() == sorted(values())
    heads.nth(column).click()
    assert values() == sorted(values(), reverse=True)
    report.close()


def test_where_a_key_is_asked_for_the_report_is_fetched_with_it_and_saved(
    page: Page, site: Site
) -> None:
    pick(page, LOOKS)
    page.locator("#key").fill(site.infer_key)
    page.locator("#key-dialog form button[type=submit]").click()
    link = page.get_by_role("link", name="Report")
    expect(link).to_be_visible()
    with page.expect_download() as saved:
        link.click()
    assert saved.value.suggested_filename == f"{LOOKS}-1-report.html"
    assert "What caps/3 is worth" in Path(saved.value.path()).read_text()
