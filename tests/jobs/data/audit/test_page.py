from __future__ import annotations

import re
from typing import Any

import pytest

from jobs.data.audit.config import AuditConfig
from jobs.data.audit.findings import Finding, in_order, to_table
from jobs.data.audit.page import render_page, shown_pictures
from jobs.data.audit.report import Report
from jobs.html_page import visible

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def page_of(findings: list[Finding], config: AuditConfig | None = None, uri: str = "set") -> str:
    counts = {one.label: {"train": 3, "validation": 1, "test": 0} for one in findings if one.label}
    report = Report(uri, "today", 9, counts, in_order(findings), notes=(EVIL,), model=EVIL)
    rows = [one.row for one in findings if one.row is not None]
    pictures = {row: f"data:image/jpeg;base64,{row}" for row in rows}
    return render_page(report, pictures, config or AuditConfig())


def finding(number: int = 0, text: str = "x", **fields: Any) -> Finding:
    return Finding(
        "dark", text, **{"path": f"{number}.jpg", "label": text, "row": number, **fields}, score=0.1
    )


def test_nothing_of_the_set_gets_into_the_page_as_markup() -> None:
    page = page_of([finding(text=EVIL, path=EVIL, split=EVIL, other_path=EVIL)], uri=EVIL)
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    assert "<script" not in body
    assert "onerror=alert(2)>" not in body
    assert "<img src=x" not in body
    # A quote would end an attribute.
    assert not re.search(r'data-label="[^"]*<', body)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&gt;" in body


def test_the_page_allows_its_own_script_only_and_no_request() -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page_of([finding()]))
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy[1])


def test_characters_that_nobody_sees_are_written_out() -> None:
    assert visible("a\u202eb\u200bc\n") == "a\\u202eb\\u200bc\\u000a"
    assert visible("Überhitzt 良") == "Überhitzt 良"
    assert "\u202e" not in page_of([finding(text="a\u202eb")])


def test_the_page_is_bounded_and_says_how_many_more_there_are() -> None:
    config = AuditConfig(page_rows=5, page_pictures=3)
    findings = [finding(number) for number in range(1200)]
    page = page_of(findings, config)
    assert page.count("<tr data-row") == 5
    assert page.count("<img ") == 3
    assert "and 1,195 more, in findings.parquet" in page
    assert len(shown_pictures(in_order(findings), config)) == 3


def test_pairs_stand_side_by_side() -> None:
    first, second = finding(1, other_path="2.jpg", other_row=2), finding(2, other_row=1)
    page = page_of([first, second, finding(3)])
    rows = re.findall(r"<tr data-row.*?</tr>", page)
    shown = [re.findall(r'<img src="data:image/jpeg;base64,(\d)"', row) for row in rows]
    assert shown == [["1", "2"], ["2", "1"], ["3"]]


def test_rows_can_be_filtered_by_finding_class_split_and_severity() -> None:
    page = page_of([finding(split="test", text="good")])
    (row,) = re.findall(r"<tr data-row[^>]*>", page)
    for attribute in ('severity="warning"', 'finding="dark"', 'label="good"', 'split="test"'):
        assert f"data-{attribute}" in row
    for field in ("severity", "finding", "label", "split", "text"):
        assert f'data-filter="{field}"' in page


def test_the_worst_come_first() -> None:
    kinds = [Finding("copy", ""), Finding("dark", ""), Finding("label_conflict", "")]
    assert [one.kind for one in in_order(kinds)] == ["label_conflict", "dark", "copy"]
    scored = [Finding("dark", "", score=score) for score in (0.3, 0.1)]
    assert [one.score for one in in_order(scored)] == [0.1, 0.3]


def test_a_name_with_a_lone_surrogate_can_be_written() -> None:
    assert "\\udc80" in page_of([finding(text="a\udc80")])


@pytest.mark.parametrize("kind", ["dark", "few_images"])
def test_the_table_has_a_row_per_finding(kind: str) -> None:
    table = to_table([Finding(kind, "why", label="good")], "s3://b/set")
    assert table.to_pylist()[0]["finding"] == kind
    assert table["leave_out"].to_pylist() == [False]
