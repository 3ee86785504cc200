"""The Grafana dashboard: that it can be imported, and shows only what a replica exports.

No Grafana is run here; the queries are checked by Prometheus' own tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.metrics import METRICS
from tests.cluster.promtool import needs_promtool, promtool
from tests.promql import find_faults
from tests.series import FOREIGN, known_labels, series_of

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "kubernetes/base/monitoring/dashboard.json").read_text()
)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
COLUMNS = 24  # of Grafana's grid
BUILT_IN = {"__rate_interval", "__all"}
VARIABLE = re.compile(r"\$\{?(\w+)\}?")
LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each panel's title with each of its queries."""
    for panel in SHOWN:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


every_expression = pytest.mark.parametrize(("title", "expression"), list(expressions()))


def strings(node: Any) -> Iterator[str]:
    """Yield every text in the dashboard."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from (text for value in node.values() for text in strings(value))
    elif isinstance(node, list):
        yield from (text for value in node for text in strings(value))


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    taken = [(panel["title"], panel["gridPos"]) for panel in PANELS]
    for title, at in taken:
        assert at["w"] > 0, title
        assert at["h"] > 0, title
        assert 0 <= at["x"] <= COLUMNS - at["w"], title
    for (title, a), (other, b) in combinations(taken, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart or above, f"{title!r} and {other!r} overlap"


def test_panels_say_what_they_show_and_their_queries_have_names_of_their_own() -> None:
    for panel in SHOWN:
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["title"]
        names = [target["refId"] for target in panel["targets"]]
        assert names, panel["title"]
        assert len(set(names)) == len(names), panel["title"]


def test_every_variable_that_is_used_is_defined_before_and_every_other_one_is_used() -> None:
    defined = [variable["name"] for variable in VARIABLES]
    assert len(set(defined)) == len(defined)
    assert {"datasource", "application", "model", "version"} <= set(defined)
    for number, variable in enumerate(VARIABLES):
        asked = set(VARIABLE.findall(json.dumps(variable)))
        assert asked - BUILT_IN <= set(defined[:number]), variable["name"]
    used = {name for text in strings(DASHBOARD) for name in VARIABLE.findall(text)}
    assert used - BUILT_IN == set(defined)


def test_every_query_goes_to_the_chosen_prometheus() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    queried = [*SHOWN, *(target for panel in SHOWN for target in panel["targets"])]
    queried += [variable for variable in VARIABLES if variable["type"] == "query"]
    assert all(each["datasource"] == chosen for each in queried)
    assert "__inputs" not in DASHBOARD, "exported for sharing: Grafana's sidecar cannot fill it in"


@every_expression
def test_every_query_names_only_series_and_labels_that_are_exported(
    title: str, expression: str
) -> None:
    assert find_faults(expression, known_labels()) == []


@every_expression
def test_every_query_of_ours_is_narrowed_by_every_variable(title: str, expression: str) -> None:
    narrowed = {"namespace", "application", "model", "version"}
    for name, matchers in re.findall(r"(ray_\w+)\{([^}]*)\}", expression):
        asked = set(re.findall(r'(\w+)=~"\$\1"', matchers))
        assert asked == (narrowed & known_labels()[name] if name in FOREIGN else narrowed)
    assert not re.search(r"ray_\w+(?![\w{])", expression), "a series without any narrowing"


def test_legends_and_tables_show_labels_that_their_query_keeps() -> None:
    for panel in SHOWN:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            assert shown <= {label for each in kept for label in each.split(", ")}, panel["title"]
        for change in panel.get("transformations", []):
            columns = {"Time", *(f"Value #{target['refId']}" for target in panel["targets"])}
            columns |= known_labels()["ray_sightline_engine_info"]
            for named in change["options"].values():
                assert set(named) <= columns, panel["title"]


def test_variables_offer_the_values_of_labels_that_are_exported() -> None:
    for variable in VARIABLES:
        if variable["type"] == "query":
            found = LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert found, variable["name"]
            assert variable["definition"] == variable["query"]["query"]
            grouped = f"max by ({found['label']}) ({found['selector']})"
            assert find_faults(grouped, known_labels()) == []


def test_every_metric_is_shown_somewhere() -> None:
    text = "\n".join(expression for _, expression in expressions())
    hidden = [
        metric.name
        for metric in METRICS
        if not any(re.search(rf"\b{name}\b", text) for name, _ in series_of(metric))
    ]
    assert hidden == ["image_errors_total"]  # a client's matter


@needs_promtool
def test_every_query_is_promql(tmp_path: Path) -> None:
    selectors = [
        found["selector"]
        for variable in VARIABLES
        if (found := LABEL_VALUES.fullmatch(variable.get("definition", "")))
    ]
    rules = [
        {"record": f"panel:{number}", "expr": filled(expression)}
        for number, expression in enumerate([*(text for _, text in expressions()), *selectors])
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    promtool("check", "rules", file)


def filled(expression: str) -> str:
    """Return a query as Grafana sends it when everything is chosen."""
    return VARIABLE.sub(".*", expression.replace("$__rate_interval", "1m"))
