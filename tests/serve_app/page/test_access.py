"""The page for everybody: by keyboard, by name and role, in light and dark, at 360 pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import PATIENCE_MS
from tests.serve_app.conftest import encode
from tests.serve_app.page.conftest import LABELS, Site, watch
from tests.serve_app.page.test_images import BROKEN, FIVE, as_files, card, choose, pick, status
from tests.serve_app.page.test_labels import edit, pending, review

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect: Any = api.expect

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

LEAST_CONTRAST = 4.5  # WCAG 2, AA, for text of any size
NAMED = {"button", "textbox", "searchbox", "combobox", "checkbox", "spinbutton", "tab", "tabpanel"}
NAMED |= {"table", "dialog", "region", "progressbar", "link"}

# The contrast of every text that is visible, and of the ground it stands on.
CONTRASTS = """() => {
    const channels = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = ([red, green, blue]) => {
        const [r, g, b] = [red, green, blue].map((each) => {
            const share = each / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const [red, green, blue, opacity = 1] = channels(getComputedStyle(at).backgroundColor);
            if (opacity === 1) return [red, green, blue];
        }
        return [255, 255, 255];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const text = walker.currentNode.textContent.trim();
        const isLeftOut = element.closest(".sr, .skip, option, :disabled");
        if (!text || isLeftOut || !element.checkVisibility()) continue;
        const one = light(channels(getComputedStyle(element).color));
        const other = light(ground(element));
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        found.push({ text, contrast, ground: other });
    }
    return found;
}"""


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until an element has the focus, as somebody without a mouse does."""
    for _ in range(60):
        if wanted.evaluate("element => element === document.activeElement"):
            outline = wanted.evaluate(
                "e => getComputedStyle(e.matches('.sr') ? e.parentElement.firstElementChild : e)"
                ".outlineStyle"
            )
            assert outline == "solid", "the focus cannot be seen"
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{wanted} cannot be reached with the Tab key")


def test_everything_can_be_done_with_the_keyboard(page: Page, site: Site) -> None:
    site.reset()
    # Before anything else: the browser has to know that no window of its own is to open.
    page.on("filechooser", lambda chooser: chooser.set_files(as_files(FIVE)))
    models = page.get_by_label("Model", exact=True)
    expect(page.locator("#model-facts")).to_contain_text("kind")
    tab_to(page, models)
    # By arrows: of a name typed slowly, a list box takes each letter for the start of another one.
    for _ in range(models.locator("option").count()):
        page.keyboard.press("ArrowDown")
        if LABELS in models.input_value():
            break
    expect(models).to_have_value(re.compile(f"/{LABELS}/"))
    expect(page.locator("#model-facts")).to_contain_text("3 classes")
    tab_to(page, page.get_by_label("Choose images…"))
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text("5 images answered.")
    page.keyboard.press("Shift+Tab")
    tab_to(page, page.get_by_role("tab", name="Images"))
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Labels")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Labels")).to_be_visible()
    button = page.get_by_role("button", name="Edit good", exact=True)
    tab_to(page, button)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Edit “good”")
    expect(dialog.get_by_label("What to change")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, dialog.get_by_label("New name"))
    page.keyboard.press("Control+a")
    page.keyboard.type("ok")
    page.keyboard.press("Enter")
    expect(pending(page)).to_have_count(1)
    expect(button).to_be_focused()
    tab_to(page, page.get_by_role("button", name="Review"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Admin key")).to_be_visible()
    page.keyboard.type(site.admin_key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Review: 1 edit")).to_be_focused()
    tab_to(page, page.get_by_label("Author"))
    page.keyboard.type("ann")
    tab_to(page, page.get_by_label("Reason"))
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="is published")).to_be_focused()
    assert site.names()[0] == "ok"
    site.reset()


def names_missing(page: Page) -> list[str]:
    """Return what assistive technology would read out without a name."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    found = []
    for node in nodes:
        role = node.get("role", {}).get("value", "")
        name = node.get("name", {}).get("value", "")
        if not node["ignored"] and role in NAMED and not name.strip():
            found.append(f"{role} {node.get('properties')}")
    return found


def test_every_control_and_table_has_a_name_and_no_text_is_faint(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    site.reset()
    grounds = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(
            viewport={"width": 360, "height": 740}, color_scheme=scheme, base_url=site.url
        )
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        problems: list[str] = []
        watch(page, site.url, problems)
        page.goto("/")

        def look(page: Page, where: str, scheme: str) -> None:
            assert names_missing(page) == [], where
            texts = page.evaluate(CONTRASTS)
            assert len(texts) > 10
            faint = [each for each in texts if each["contrast"] < LEAST_CONTRAST]
            assert not faint, f"{where}, {scheme}"
            excess = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert excess <= 0, f"{where}: {excess} pixels too wide"
            grounds[scheme] = sorted(each["ground"] for each in texts)[len(texts) // 2]

        pick(page, LABELS)
        expect(page.locator("#model-facts")).to_contain_text("kind dynamic")
        long_name = "a-very-long-name-without-any-space-" * 4 + ".jpg"
        choose(page, {long_name: encode(1), "b.jpg": encode(2), "broken.jpg": BROKEN})
        expect(status(page)).to_have_text("2 images answered, 1 failed.")
        expect(card(page, long_name)).to_be_visible()
        look(page, "images", scheme)
        page.get_by_role("tab", name="Labels").click()
        edit(page, "good", "Rename", New_name="a-very-long-name-without-any-space" * 4)
        edit(page, "torn", "Hide")
        page.get_by_role("button", name="Edit dented").click()
        look(page, "dialog", scheme)
        page.keyboard.press("Escape")
        review(page, site)
        look(page, "review", scheme)
        context.close()
        assert not problems
    assert grounds["light"] > 0.7
    assert grounds["dark"] < 0.05
