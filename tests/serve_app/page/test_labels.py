"""Labels changed in the page: edits, their review, publishing, a conflict, history and rollback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.serve_app.conftest import encode
from tests.serve_app.page.conftest import LABELS, PLAIN, Site
from tests.serve_app.page.test_images import card, choose, pick, share_of

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect: Any = api.expect

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

MIXED = "\N{CYRILLIC SMALL LETTER O}k"


@pytest.fixture(autouse=True)
def _own_classes(site: Site) -> Iterator[None]:
    """Begin each test with the model's own classes."""
    site.reset()
    yield
    site.reset()


@pytest.fixture
def labels(page: Page) -> Page:
    """The view of the labels."""
    pick(page, LABELS)
    page.get_by_role("tab", name="Labels").click()
    expect(row_of(page, "dented")).to_be_visible()
    return page


def edit(page: Page, label: str, operation: str, **fields: str) -> None:
    """Make a pending edit in the dialog; a field is found by the beginning of its name."""
    page.get_by_role("button", name=f"Edit {label}", exact=True).click()
    dialog = page.get_by_role("dialog", name=f"Edit “{label}”")
    dialog.get_by_label("What to change").select_option(label=operation)
    for name, value in fields.items():
        field = dialog.get_by_label(re.compile(f"^{name.replace('_', ' ')}", re.IGNORECASE))
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(label=value)
        else:
            field.fill(value)
    dialog.get_by_role("button", name="Add to pending edits").click()
    expect(dialog).to_be_hidden()


def review(page: Page, site: Site) -> Locator:
    """Open the review, giving the admin key where it is asked for."""
    page.get_by_role("button", name="Review").click()
    region = page.get_by_role("region", name=re.compile("^Review"))
    dialog = page.get_by_role("dialog", name="Admin key")
    expect(region.or_(dialog)).to_be_visible()
    if dialog.is_visible():
        dialog.get_by_label("Key", exact=True).fill(site.admin_key)
        dialog.get_by_role("button", name="Use this key").click()
    expect(region.get_by_role("heading", name=re.compile("^Review"))).to_be_focused()
    return region


def publish(region: Locator, reason: str) -> None:
    """Publish what is under review."""
    region.get_by_label("Author").fill("ann")
    region.get_by_label("Reason").fill(reason)
    region.get_by_role("button", name="Publish").click()


def row_of(page: Page, label: str) -> Locator:
    """Return a label's row of the table."""
    header = page.get_by_role("rowheader", name=re.compile(f"^{label}\\b"))
    return page.get_by_role("table", name="Labels").get_by_role("row").filter(has=header)


def pending(page: Page) -> Locator:
    """Return the edits that are not published."""
    return page.get_by_role("list", name="Pending edits").get_by_role("listitem")


def test_labels_are_renamed_and_merged_after_a_look_at_what_it_would_do(
    labels: Page, site: Site
) -> None:
    page, before = labels, site.revision()
    page.get_by_role("tab", name="Images").click()
    choose(page, {"cap.jpg": encode(3)})
    expect(card(page, "cap.jpg")).to_contain_text(f"revision {before}")
    page.get_by_role("tab", name="Labels").click()
    for label, name in (("good", MIXED), ("dented", "bad")):
        edit(page, label, "Rename", New_name=name)
    edit(page, "torn", "Merge into another label", Merge_into="dented")
    expect(pending(page)).to_have_count(3)
    expect(pending(page).first).to_contain_text(f"Rename “good” to “{MIXED}”, keep the old name")
    region = review(page, site)
    changes = region.get_by_role("list", name="Changes").get_by_role("listitem")
    expect(changes.filter(has_text=f"name good -> {MIXED}")).to_have_count(1)
    expect(changes.filter(has_text="outputs [dented] -> [dented, torn]")).to_have_count(1)
    expect(region).to_contain_text("mixes letters of several alphabets")
    table = region.get_by_role("table", name="What if")
    total = table.get_by_role("row").nth(1)
    expect(total.get_by_role("rowheader")).to_contain_text("All images")
    for row in (total, table.get_by_role("row", name="bad")):
        accuracy = row.get_by_role("cell").first
        for word in ("before", "after"):
            figure = accuracy.locator(".figure", has_text=word)
            told = re.search(r"([\d.]+) %", figure.inner_text())
            assert told is not None
            assert share_of(figure.locator(".bar")) == pytest.approx(float(told[1]) / 100, abs=0.02)
    assert site.revision() == before, "a review stores nothing"
    publish(region, "two bins")
    done = page.get_by_role("status").filter(has_text="is published")
    expect(done).to_have_text(f"Revision {before + 1} is published; 1 of 1 replica has it.")
    assert site.names() == [MIXED, "bad", "torn"]
    expect(pending(page)).to_have_count(0)
    expect(row_of(page, "torn")).to_contain_text("retired")

    page.get_by_role("tab", name="Images").click()
    expect(card(page, "cap.jpg")).to_contain_text(f"label revision {before + 1} is published since")
    page.get_by_role("button", name="Score again").click()
    expect(card(page, "cap.jpg")).to_contain_text(f"revision {before + 1}")
    expect(card(page, "cap.jpg").locator(".verdict")).to_have_text(re.compile(f"^({MIXED}|bad)"))
    expect(card(page, "cap.jpg").get_by_role("list", name="Scores").locator("li")).to_have_count(2)


def test_somebody_elses_change_is_never_overwritten(labels: Page, site: Site) -> None:
    page = labels
    edit(page, "good", "Rename", New_name="ok")
    region = review(page, site)
    theirs = site.change({"op": "rename", "label": "torn", "name": "ripped"})
    publish(region, "a better word")
    message = page.get_by_role("alert").filter(has_text="Somebody else")
    expect(message).to_contain_text(f"revision {theirs} is the newest now")
    expect(row_of(page, "ripped")).to_be_visible()
    expect(pending(page)).to_have_count(1)
    assert site.names() == ["good", "dented", "ripped"]
    publish(review(page, site), "a better word")
    expect(page.get_by_role("status").filter(has_text="is published")).to_be_visible()
    assert site.names() == ["ok", "dented", "ripped"]


def test_a_publish_whose_answer_was_lost_is_one_write_when_sent_again(
    labels: Page, site: Site
) -> None:
    page, before = labels, site.revision()
    edit(page, "good", "Rename", New_name="ok")
    region = review(page, site)
    answers = iter(["lost"])

    def carry(route: Any) -> None:
        if route.request.method == "PUT" and next(answers, None) == "lost":
            route.fetch()
            route.abort()
        else:
            route.continue_()

    page.route("**/labels", carry)
    publish(region, "once")
    expect(region.get_by_role("alert")).to_contain_text("It may be published all the same")
    assert site.revision() == before + 1
    region.get_by_role("button", name="Publish").click()
    expect(page.get_by_role("status").filter(has_text="is published")).to_contain_text(
        f"Revision {before + 1}"
    )
    assert site.revision() == before + 1


def test_each_edit_that_cannot_be_done_says_why(labels: Page, site: Site) -> None:
    page = labels
    site.change({"op": "hide", "label": "dented"})  # not seen by the page yet
    edit(page, "good", "Rename", New_name="ok")
    edit(page, "dented", "Hide")
    page.get_by_role("button", name="Reload").click()
    expect(row_of(page, "dented")).to_contain_text("hidden")
    page.get_by_role("button", name="Review").click()
    page.get_by_label("Key", exact=True).fill(site.admin_key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="Some edits cannot be done")).to_be_visible()
    expect(pending(page).nth(1)).to_contain_text("Cannot be done: label 'dented' is hidden")
    expect(pending(page).nth(0)).not_to_contain_text("Cannot")
    pending(page).nth(1).get_by_role("button", name="Remove: Hide “dented”").click()
    publish(review(page, site), "one is enough")
    expect(row_of(page, "ok")).to_be_visible()


def test_history_shows_who_and_what_and_leads_back(labels: Page, site: Site) -> None:
    page, before = labels, site.revision()
    edit(page, "torn", "Hide")
    edit(page, "good", "Set its threshold", Threshold="1")
    edit(page, "dented", "Change its aliases", Add="bent")
    publish(review(page, site), "not in season")
    newest = page.get_by_role("list", name="History").get_by_role("listitem").first
    expect(newest).to_contain_text(f"Revision {site.revision()}")
    for text in ("in effect", "ann", "not in season", "Hide “torn”", "add “bent”"):
        expect(newest).to_contain_text(text)
    toggle = newest.get_by_role("button", name="Diff")
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    changes = newest.get_by_role("list", name="Changes")
    expect(changes).to_contain_text("label 'torn': status active -> hidden")

    page.get_by_role("tab", name="Images").click()
    choose(page, {f"{seed}.jpg": encode(seed) for seed in range(8)})
    unknown = page.locator(".card", has_text="is hidden or below its threshold")
    expect(unknown.first.locator(".verdict")).to_contain_text("unknown")

    page.get_by_role("tab", name="Labels").click()
    page.get_by_role("button", name=f"Roll back to this revision, {before}", exact=True).click()
    region = page.get_by_role("region", name=f"Review: back to revision {before}")
    expect(region.get_by_role("list", name="Changes")).to_contain_text("status hidden -> active")
    expect(region.get_by_label("Reason")).to_have_value(f"back to revision {before}")
    written = site.revision()
    region.get_by_role("button", name="Publish").click()
    expect(newest).to_contain_text(f"Revision {written + 1}")
    expect(row_of(page, "torn")).to_contain_text("active")


@pytest.mark.parametrize("page", ["phone"], indirect=True)
def test_old_revisions_are_listed_when_asked_for(labels: Page, site: Site) -> None:
    page = labels
    for number in range(11):
        site.change({"op": "rename", "label": "good", "name": f"good {number}"})
    page.get_by_role("button", name="Reload").click()
    revisions = page.get_by_role("list", name="History").locator("> li")
    expect(revisions.first).to_contain_text(f"Revision {site.revision()}")
    expect(revisions).to_have_count(10)
    page.get_by_role("button", name="Show older ones").click()
    expect(revisions.nth(11)).to_be_visible()


def test_a_change_for_later_says_which_revision_is_in_effect_until_then(
    labels: Page, site: Site
) -> None:
    page, before = labels, site.revision()
    edit(page, "good", "Rename", New_name="ok")
    region = review(page, site)
    region.get_by_label("Takes effect").fill("2099-01-07T06:00")
    publish(region, "next season")
    expect(page.get_by_role("status").filter(has_text="to take effect later")).to_be_visible()
    facts = page.locator("#labels-facts")
    expect(facts).to_contain_text(f"revision {before} is in effect until 7 Jan 2099")


def test_edits_are_still_there_after_a_look_at_another_view(labels: Page, site: Site) -> None:
    page = labels
    edit(page, "good", "Rename", New_name="ok")
    pick(page, PLAIN)
    expect(page.get_by_role("tab")).to_have_count(0)
    pick(page, LABELS)
    page.get_by_role("tab", name="Labels").click()
    expect(pending(page)).to_have_text([re.compile("Rename “good” to “ok”")])
    page.get_by_role("button", name="Discard all").click()
    expect(pending(page)).to_have_count(0)
    expect(page.get_by_role("button", name="Review")).to_be_disabled()
    assert site.names() == ["good", "dented", "torn"]
