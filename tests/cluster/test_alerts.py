"""The alert rules: that they fire when they should, and name only what a replica exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.render import ALERTS
from serve_app.watch import SCORING
from tests.cluster.promtool import needs_promtool, promtool
from tests.promql import find_faults, values_of
from tests.series import known_labels

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("alerts_test.yaml")
(GROUP,) = yaml.safe_load((ROOT / ALERTS).read_text())["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}

every_rule = pytest.mark.parametrize("name", list(RULES))


@needs_promtool
def test_the_rules_are_what_prometheus_understands() -> None:
    promtool("check", "rules", ROOT / ALERTS)


@pytest.mark.slow
@needs_promtool
def test_each_alert_fires_when_it_should_and_else_does_not() -> None:
    promtool("test", "rules", CASES)


@every_rule
def test_each_alert_is_tested_firing_and_quiet(name: str) -> None:
    tests = yaml.safe_load(CASES.read_text())["tests"]
    outcomes = [
        bool(check.get("exp_alerts"))
        for test in tests
        for check in test["alert_rule_test"]
        if check["alertname"] == name
    ]
    assert set(outcomes) == {True, False}


@every_rule
def test_each_alert_names_only_series_and_labels_that_are_exported(name: str) -> None:
    assert find_faults(RULES[name]["expr"], known_labels()) == []


@every_rule
def test_each_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    assert RULES[name]["labels"]["severity"] in ("warning", "critical")
    assert set(RULES[name]["annotations"]) == {"summary", "description"}


def test_the_codes_and_calls_that_rules_ask_for_are_given_somewhere() -> None:
    sources = [path for package in ("models", "serve_app") for path in (ROOT / package).rglob("*")]
    text = "\n".join(path.read_text() for path in sources if path.suffix == ".py")
    for rule in RULES.values():
        for code in values_of(rule["expr"], "code"):
            assert f'"{code}"' in text, f"nothing is answered with the code {code}"
        assert values_of(rule["expr"], "call") <= SCORING


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("ray_sightline_request_total", "no series is named ray_sightline_request_total"),
        ('ray_sightline_errors_total{kode="x"}', "has no label kode"),
        ('rate(ray_sightline_unknown_total{code=~"a}b", model="x"}[5m])', "has no label code"),
        ("sum by (code) (rate(ray_sightline_requests_total[5m]))", "is grouped by code"),
        ("max without (le) (ray_sightline_label_revision)", "is grouped by le"),
        ("sum by (model) (vector(1))", "nothing is grouped by model"),
        (
            "ray_sightline_proof_cosine * on (reeplica) ray_sightline_proof_seconds",
            "nothing has the label reeplica",
        ),
    ],
)
def test_a_name_that_nothing_exports_is_found(expression: str, fault: str) -> None:
    (found,) = find_faults(expression, known_labels())
    assert fault in found


def test_a_grouping_behind_its_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="not the other way"):
        find_faults("sum(ray_sightline_unknown_total) by (model)", known_labels())
