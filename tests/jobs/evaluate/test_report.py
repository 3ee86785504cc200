"""The page and the card: no text of the set is markup there, and they say what was found."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from jobs.evaluate.__main__ import show_outcome
from jobs.evaluate.assess import beside
from jobs.evaluate.card import model_card
from jobs.evaluate.config import EvaluateConfig
from jobs.evaluate.page import render_page
from jobs.evaluate.report import Report
from jobs.evaluate.tables import LIVE_LABELS, MATRIX_LABELS
from models.labels import OutputClass
from models.manifest import Manifest, Outputs
from models.preprocess import PreprocessSpec
from tests.jobs.evaluate.answers import draw, judge, judge_with_a_map, make_report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u202e"


class Tags(HTMLParser):
    """What a browser finds in a page: its elements and the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes |= {name for name, _ in attrs}


def report_of(count: int = 120, labels: tuple[str, ...] = ("good", "dented", "torn")) -> Report:
    return make_report(judge(*draw(count, len(labels)), labels))


def manifest() -> Manifest:
    return Manifest(
        name="caps",
        version=3,
        kind="generic",
        created=datetime(2026, 11, 1, tzinfo=UTC),
        run_id="night",
        code_revision="abc",
        config_digest="def",
        preprocess=PreprocessSpec(height=32, width=32),
        outputs=Outputs(probabilities=2, embedding=4),
        classes=(OutputClass(id="a", name="a"), OutputClass(id="b", name="b")),
    )


def test_nothing_of_the_set_gets_into_the_page_as_markup() -> None:
    labels = (EVIL, "b", "c")
    report = make_report(judge(*draw(80), labels), evil=EVIL)
    report = beside(report, judge(*draw(80, seed=1), labels), EVIL, [EVIL] * 80, EvaluateConfig())
    page = render_page(replace(report, model=EVIL, engine=EVIL))
    tags = Tags()
    tags.feed(page)
    assert tags.count["script"] == 2  # the numbers of the slider, and the script
    assert tags.count["img"] == 1
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert "\u202e" not in page
    assert "\\u202e" in page


def test_nothing_of_the_set_is_markup_in_the_terminal() -> None:
    """A path with [/b] ended the command when all files were written."""
    evil = "[/b]"
    labels = (evil, "b", "c")
    report = make_report(judge(*draw(80), labels), evil=evil)
    report = beside(report, judge(*draw(80, seed=1), labels), evil, [evil] * 80, EvaluateConfig())
    console = Console(file=io.StringIO(), width=200)
    show_outcome(report, {"report": f"/{evil}/report.html"}, [f"worse than {evil}"], console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for told in (f"caps/3 on {evil} (test)", f"written to /{evil}/", f"worse than {evil}"):
        assert told in shown


def test_the_page_says_when_pictures_were_not_asked_for() -> None:
    report = replace(report_of(), mistakes=())
    wrong = report.figures.num_images - int(report.figures.confusion.diagonal().sum())
    assert wrong
    assert f"{wrong} answers were wrong; no pictures of them were asked for" in render_page(report)
    right = make_report(judge(np.eye(3).repeat(40, axis=0) * 9, np.arange(3).repeat(40)))
    assert "No answer was wrong." in render_page(replace(right, mistakes=()))


def test_an_image_that_a_label_map_leaves_unanswered_is_not_called_wrong() -> None:
    truth = np.arange(3).repeat(20)
    logits = np.eye(3)[truth] * 5
    logits[0] = [0, 5, 0]
    changes: dict[str, dict[str, object]] = {
        "torn": {"status": "hidden"},
        "good": {"threshold": 0.999},
    }
    judged = judge_with_a_map(logits, truth, {"torn": changes["torn"]})
    page = render_page(replace(make_report(judged), mistakes=()))
    assert "1 answers were wrong; no pictures of them were asked for." in page
    assert "20 images were left unanswered." in page
    assert '<dd id="now-left">20</dd>' in page
    assert "20 images whose label is hidden are left to a person at every threshold" in page
    assert "own thresholds" not in page
    report = make_report(judge_with_a_map(logits[1:], truth[1:], changes))
    page = render_page(replace(report, mistakes=()))
    assert "No answer was wrong. 39 images were left unanswered." in page
    for told in (page, model_card(manifest(), report)):
        assert "The label map's own thresholds leave 19 images unanswered." in told
    assert (report.to_json()["num_unknown"], report.to_json()["num_hidden"]) == (39, 20)
    assert "own thresholds" not in model_card(manifest(), report_of())


def test_the_page_needs_no_other_file_and_allows_no_request() -> None:
    page = render_page(report_of())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "script-src 'sha256-" in policy[1]
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert len(re.findall(r"<script", page)) == 2  # the numbers of the slider, and the script


def test_every_link_of_the_page_leads_to_a_section() -> None:
    report = report_of()
    other = judge(*draw(120, seed=5), report.judged.labels)
    page = render_page(beside(report, other, "caps/2", ["x"] * 120, EvaluateConfig()))
    links = re.findall(r'<a href="#([^"]+)"', page)
    assert len(links) == 9
    for link in links:
        assert page.count(f'<section id="{link}">') == 1


def test_the_slider_has_the_numbers_of_the_curve() -> None:
    report = report_of()
    found = re.search(r'id="curves">(.*?)</script>', render_page(report), re.DOTALL)
    assert found is not None
    values = json.loads(found[1])
    curve = report.thresholds.curve
    assert values["answered"] == list(curve.num_answered)
    assert values["right"] == list(curve.num_right)
    assert len(values["labels"]) == 3


def test_a_thousand_labels_make_no_endless_page() -> None:
    labels = tuple(f"label {k}" for k in range(max(MATRIX_LABELS, LIVE_LABELS) + 1))
    page = render_page(report_of(300, labels), rows=50)
    assert '<table class="matrix">' not in page
    assert '"labels": []' in page
    assert len(page) < 300_000


def test_the_page_and_the_card_say_what_the_temperature_did() -> None:
    report = report_of()
    error = f"{report.calibration.error:.3f}"
    for told in (render_page(report), model_card(manifest(), report)):
        assert error in told
        assert "0.123" in told
        assert "1.500" in told
    without = replace(report, error_without=None, temperature=1.0)
    assert "no temperature (1)" in model_card(manifest(), without)


def test_the_card_warns_of_what_the_figures_are_from() -> None:
    report = report_of()
    assert "never trained on" in model_card(manifest(), report)
    assert "flatter" in model_card(manifest(), replace(report, split="train"))
    assert "nobody says" in model_card(manifest(), replace(report, split="all"))


def test_a_name_of_the_set_is_no_markdown_in_the_card() -> None:
    report = make_report(judge(*draw(80), ("<img src=x>|a", "[b](http://x)", "c")), evil=EVIL)
    card = model_card(manifest(), report)
    assert "<img" not in card.replace("\\<img", "")
    assert "\\[b\\](http://x)" in card
    rows = [line for line in card.splitlines() if line.startswith("| \\<img")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 7


@pytest.mark.parametrize("count", [1, 2, 19])
def test_the_smallest_sets_have_a_report_too(count: int) -> None:
    report = report_of(count)
    assert f"{count} images" in render_page(report)
    text = json.dumps(report.to_json(), allow_nan=False)  # NaN is no JSON
    assert json.loads(text)["figures"]["num_images"] == count


def test_what_two_models_differ_in_is_listed_lost_ones_first() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]] * 4
    theirs = np.eye(3)[[0, 0, 2, 1]] * 5
    truth = np.array([0, 1, 2, 1])
    report = make_report(judge(logits, truth, ("a", "b", "c")))
    other = judge(theirs, truth, ("a", "b", "c"))
    paths = [f"/set/{n}.jpg" for n in range(4)]
    report = replace(report, source="/set")
    found = beside(report, other, "caps/2", paths, EvaluateConfig()).changes
    assert [(one.path, one.change, one.answer, one.other_answer) for one in found] == [
        ("3.jpg", "lost", "a", "b"),
        ("1.jpg", "gained", "b", "a"),
    ]
