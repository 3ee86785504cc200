"""Images through the page, as people bring them: dropped, chosen, pasted, taken."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.browser import PATIENCE_MS
from tests.serve_app.conftest import encode
from tests.serve_app.page.conftest import LOOKS, PLAIN, Site

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect: Any = api.expect

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

BROKEN = b"\xff\xd8\xff and then nothing that a JPEG has"
FIVE = {f"cell-{seed}.jpg": encode(seed) for seed in range(5)}


def as_files(images: dict[str, bytes]) -> list[Any]:
    """Return images as Playwright hands them to a file field."""
    return [
        {"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in images.items()
    ]


def choose(page: Page, images: dict[str, bytes]) -> None:
    """Choose files as the button does."""
    page.get_by_label("Choose images…").set_input_files(as_files(images))


def carried(page: Page, images: dict[str, bytes]) -> Any:
    """Return a DataTransfer that carries images, as a drag or the clipboard does."""
    coded = [[name, base64.b64encode(data).decode()] for name, data in images.items()]
    return page.evaluate_handle(
        """coded => {
            const carried = new DataTransfer();
            for (const [name, text] of coded) {
                const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
                carried.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            return carried;
        }""",
        coded,
    )


def card(page: Page, name: str) -> Locator:
    """Return the result of one image."""
    return page.get_by_role("list", name="Results").get_by_role("listitem", name=name, exact=True)


def status(page: Page) -> Locator:
    """Return the line that screen readers hear."""
    return page.get_by_role("region", name="Summary").get_by_role("status")


def pick(page: Page, name: str) -> None:
    """Pick another model."""
    page.get_by_label("Model", exact=True).select_option(label=f"{name} (version 1)")


def share_of(bar: Locator) -> float:
    """Return how much of a bar is filled, in pixels on the screen."""
    whole, filled = bar.bounding_box(), bar.locator(".fill").bounding_box()
    assert whole is not None
    assert filled is not None
    assert whole["width"] > 20
    assert whole["height"] >= 4
    return float(filled["width"] / whole["width"])


def test_every_image_chosen_has_its_label_bars_and_facts_and_a_broken_one_its_error(
    page: Page, site: Site
) -> None:
    pick(page, PLAIN)
    choose(page, {**FIVE, "broken.jpg": BROKEN})
    expect(status(page)).to_have_text("5 images answered, 1 failed.")
    url = f"{site.url}/v2/models/{PLAIN}/classify"
    labels = []
    for name, data in FIVE.items():
        told = httpx.post(url, content=data, timeout=20).json()
        labels.append(told["label"])
        shown = card(page, name)
        expect(shown.locator(".verdict")).to_have_text(
            f"{told['label']}{told['confidence']:.1%} confidence".replace("%", " %")
        )
        scores = shown.get_by_role("list", name="Scores").get_by_role("listitem")
        expect(scores).to_have_count(2)
        for row, score in zip(scores.all(), told["scores"], strict=True):
            expect(row).to_contain_text(score["label"])
            assert share_of(row.locator(".bar")) == pytest.approx(score["probability"], abs=0.02)
        expect(shown.locator("img.thumb")).to_have_js_property("naturalWidth", 144)
        expect(shown).to_contain_text(re.compile(r"Round trip\D*\d+ ms"))
        expect(shown).to_contain_text(f"{told['engine']} {told['precision']}")
        expect(shown).to_contain_text(f"{PLAIN} 1")
    refusal = httpx.post(url, content=BROKEN, timeout=20).json()["error"]
    expect(card(page, "broken.jpg")).to_contain_text(refusal)
    counts = page.get_by_role("table", name="Images per label")
    for label in set(labels):
        row = counts.get_by_role("row", name=label)
        expect(row.locator("td.number")).to_have_text(str(labels.count(label)))


def test_images_that_come_while_a_model_is_being_picked_are_scored_by_that_model(
    page: Page,
) -> None:
    expect(page.locator("#model-facts")).to_contain_text("kind")
    held: list[Any] = []
    page.route(f"**/{PLAIN}/versions/1/config", lambda route: held.append(route))
    pick(page, PLAIN)
    choose(page, {"early.jpg": FIVE["cell-0.jpg"]})
    expect(page.locator("#model-facts")).to_have_text("…")
    expect(status(page)).to_have_text("No image yet.")
    held.pop().continue_()
    expect(status(page)).to_have_text("1 image answered.")
    expect(card(page, "early.jpg")).to_contain_text(f"{PLAIN} 1")


def test_the_newest_result_is_first_and_clear_removes_them_all(page: Page) -> None:
    choose(page, {"first.jpg": FIVE["cell-0.jpg"]})
    expect(status(page)).to_have_text("1 image answered.")
    choose(page, {"second.jpg": FIVE["cell-1.jpg"]})
    expect(status(page)).to_have_text("2 images answered.")
    headings = page.get_by_role("region", name="Results").get_by_role("heading", level=3)
    expect(headings).to_have_text(["second.jpg", "first.jpg"])
    page.get_by_role("button", name="Clear").click()
    expect(headings).to_have_count(0)
    expect(status(page)).to_have_text("No image yet.")


def test_images_can_be_dropped_anywhere_and_pasted(page: Page) -> None:
    page.dispatch_event("main", "dragenter", {"dataTransfer": carried(page, FIVE)})
    expect(page.locator("#drop")).to_have_class("drop over")
    page.dispatch_event("main", "drop", {"dataTransfer": carried(page, FIVE)})
    expect(page.locator("#drop")).to_have_class("drop")
    expect(status(page)).to_have_text("5 images answered.")
    page.evaluate(
        """carried => document.dispatchEvent(new ClipboardEvent("paste",
            { clipboardData: carried, bubbles: true, cancelable: true }))""",
        carried(page, {"pasted.png": encode(9, kind="PNG")}),
    )
    expect(card(page, "pasted.png").locator(".verdict")).to_contain_text("confidence")


def test_the_camera_takes_a_picture_that_is_scored_and_is_let_go(page: Page) -> None:
    page.get_by_role("button", name="Use the camera…").click()
    dialog = page.get_by_role("dialog", name="Camera")
    expect(dialog.get_by_role("button", name="Capture")).to_be_focused()
    dialog.get_by_role("button", name="Capture").click()
    expect(dialog.get_by_role("status")).to_have_text("Picture 1 was taken.")
    dialog.get_by_role("button", name="Close").click()
    expect(card(page, "camera-1.jpg").locator(".verdict")).to_contain_text("confidence")
    assert page.locator("#video").evaluate("video => video.srcObject") is None


def test_a_busy_server_is_asked_again_after_the_time_it_names(page: Page) -> None:
    refusals = 2

    def answer(route: Any) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:  # as a proxy in between says it
            route.fulfill(status=503, headers={"Retry-After": "1"}, body="<html>busy</html>")
        else:
            route.continue_()

    page.route("**/classify*", answer)
    choose(page, {"late.jpg": FIVE["cell-0.jpg"]})
    expect(card(page, "late.jpg")).to_contain_text("The server is busy; asking again in 1 s")
    expect(card(page, "late.jpg").locator(".verdict")).to_contain_text("confidence")


@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_only_the_newest_results_are_kept_and_the_page_says_so(page: Page) -> None:
    small = encode(1, size=(64, 64))
    choose(page, {f"{number}.jpg": small for number in range(203)})
    expect(status(page)).to_have_text("200 images answered.", timeout=4 * PATIENCE_MS)
    summary = page.get_by_role("region", name="Summary")
    expect(summary).to_contain_text("The newest 200 results are kept; 3 older went.")
    expect(card(page, "0.jpg")).to_have_count(0)
    expect(card(page, "202.jpg")).to_have_count(1)


def test_the_exported_table_has_every_image_and_no_formula(page: Page, tmp_path: Path) -> None:
    choose(page, {"=1+1.jpg": FIVE["cell-0.jpg"], 'a "quoted", name.jpg': FIVE["cell-1.jpg"]})
    choose(page, {"broken.jpg": BROKEN})
    expect(status(page)).to_have_text("2 images answered, 1 failed.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    download.value.save_as(tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"'=1+1.jpg", 'a "quoted", name.jpg', "broken.jpg"}
    assert rows["'=1+1.jpg"]["label"] in ("good", "defective")
    assert 0 < float(rows["'=1+1.jpg"]["confidence"]) <= 1
    assert rows["broken.jpg"]["label"] == ""
    assert rows["broken.jpg"]["error"] != ""


def test_an_embedding_model_asks_for_a_key_and_shows_the_nearest_images(
    page: Page, site: Site
) -> None:
    pick(page, LOOKS)
    dialog = page.get_by_role("dialog", name="Access key")
    expect(dialog.get_by_label("Key", exact=True)).to_be_focused()
    dialog.get_by_label("Key", exact=True).fill("no such key")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("the key is not known here")
    dialog.get_by_label("Key", exact=True).fill(site.infer_key)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#model-facts")).to_contain_text("kind embedding")
    choose(page, {**FIVE, "copy-of-2.jpg": FIVE["cell-2.jpg"]})
    expect(status(page)).to_have_text("6 images answered.")
    url = f"{site.url}/v2/models/{LOOKS}/embed"
    headers = {"X-API-Key": site.infer_key}
    vectors = {
        name: httpx.post(url, content=data, headers=headers, timeout=20).json()["embedding"]
        for name, data in FIVE.items()
    }
    mine = vectors.pop("cell-2.jpg")
    cosines = {
        name: sum(a * b for a, b in zip(mine, vector, strict=True))
        for name, vector in vectors.items()
    }
    cosines["copy-of-2.jpg"] = 1.0
    nearest = sorted(cosines, key=lambda name: -cosines[name])
    rows = card(page, "cell-2.jpg").get_by_role("list", name="Nearest images")
    expect(rows.get_by_role("listitem")).to_have_text(
        [re.compile(f"{re.escape(name)}.*{cosines[name]:.3f}") for name in nearest]
    )
    assert share_of(rows.locator(".bar").first) == pytest.approx(1, abs=0.01)
    expect(rows.locator("img").first).to_have_js_property("naturalWidth", 144)
    assert site.infer_key not in page.url
    assert page.evaluate("localStorage.length") == 0
    page.get_by_role("button", name="Forget keys").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_answers_of_another_model_say_so_until_they_are_scored_again(
    page: Page, site: Site
) -> None:
    choose(page, {"cell-0.jpg": FIVE["cell-0.jpg"]})
    expect(status(page)).to_have_text("1 image answered.")
    pick(page, LOOKS)
    page.get_by_label("Key", exact=True).fill(site.infer_key)
    page.keyboard.press("Enter")
    expect(card(page, "cell-0.jpg")).to_contain_text("Old: another model is picked now.")
    page.get_by_role("button", name="Score again").click()
    expect(card(page, "cell-0.jpg")).to_contain_text(f"{LOOKS} 1")
    expect(card(page, "cell-0.jpg")).not_to_contain_text("Old")


def test_a_model_without_its_key_is_not_used_and_nobody_is_asked_twice(page: Page) -> None:
    expect(page.locator("#model-facts")).to_contain_text("kind")
    pick(page, LOOKS)
    expect(page.get_by_role("dialog", name="Access key")).to_be_visible()
    page.keyboard.press("Escape")
    alert = page.get_by_role("alert").filter(has_text=f"{LOOKS} (version 1) cannot be used")
    expect(alert).to_contain_text("No key was given.")
    expect(page.get_by_role("dialog")).to_have_count(0)
    # The model that was picked before goes on.
    expect(page.get_by_label("Model", exact=True).locator("option:checked")).to_contain_text("elpv")
    choose(page, {"cell-0.jpg": FIVE["cell-0.jpg"]})
    expect(card(page, "cell-0.jpg")).to_contain_text("elpv 1")
