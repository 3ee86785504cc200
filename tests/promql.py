"""Just enough of PromQL to find the series and labels that an expression names.

Whether it is PromQL at all is for promtool to say. Aggregations are read in the form
`sum by (label) (...)` alone; `sum(...) by (label)` is refused, as its labels would go unread.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

STRING = r'"(?:[^"\\]|\\.)*"'
SELECTOR = re.compile(rf"\b(?P<name>ray_\w+)\s*(?:\{{(?P<matchers>(?:[^}}\"]|{STRING})*)\}})?")
MATCHER = re.compile(rf"(?P<label>\w+)\s*(?P<how>=~|!~|!=|=)\s*(?P<value>{STRING})")
GROUPING = re.compile(
    r"(?P<before>\S)?\s*\b(?:by|without)\s*\((?P<labels>[^)]*)\)\s*(?P<after>\(?)"
)
MATCHING = re.compile(r"\b(?:on|ignoring|group_left|group_right)\s*\((?P<labels>[^)]*)\)")


def find_faults(expression: str, known: Mapping[str, Collection[str]]) -> list[str]:
    """Return what an expression names that none of the `known` series (name to labels) has."""
    faults = []
    for name, matchers in _selectors(expression):
        if name not in known:
            faults.append(f"no series is named {name}")
        faults += [
            f"{name} has no label {label}"
            for label, _ in matchers
            if name in known and label not in known[name]
        ]
    for labels, inside in _groupings(expression):
        names = {name for name, _ in _selectors(inside)} & set(known)
        if not names:
            faults.append(f"nothing is grouped by {', '.join(labels)}")
        faults += [
            f"{name} is grouped by {label}, which it does not have"
            for name in sorted(names)
            for label in labels
            if label not in known[name]
        ]
    everywhere = {label for name, _ in _selectors(expression) for label in known.get(name, ())}
    for found in MATCHING.finditer(_without_strings(expression)):
        faults += [
            f"nothing has the label {label} that is matched by"
            for label in _listed(found["labels"])
            if label not in everywhere
        ]
    return faults


def values_of(expression: str, label: str) -> set[str]:
    """Return the values that an expression asks of a label, those of `a|b` one by one."""
    return {
        value
        for _, matchers in _selectors(expression)
        for name, asked in matchers
        if name == label
        for value in asked.split("|")
    }


def _selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for found in SELECTOR.finditer(expression):
        matchers = MATCHER.finditer(found["matchers"] or "")
        yield found["name"], [(each["label"], each["value"][1:-1]) for each in matchers]


def _groupings(expression: str) -> Iterator[tuple[list[str], str]]:
    """Yield the labels of each `by (...)` with what stands in the parentheses behind it."""
    bare = _without_strings(expression)
    for found in GROUPING.finditer(bare):
        if found["before"] == ")" or not found["after"]:
            raise ValueError(f"write `sum by (label) (...)`, not the other way: {expression!r}")
        yield _listed(found["labels"]), expression[found.end() : _closing(bare, found.end())]


def _without_strings(expression: str) -> str:
    """Return the expression with its strings blanked, at the same positions."""
    return re.sub(STRING, lambda found: '"' + " " * (len(found[0]) - 2) + '"', expression)


def _closing(expression: str, start: int) -> int:
    depth = 1
    for at in range(start, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[at], 0)
        if not depth:
            return at
    raise ValueError(f"a parenthesis is not closed in {expression!r}")


def _listed(labels: str) -> list[str]:
    return [label.strip() for label in labels.split(",") if label.strip()]
