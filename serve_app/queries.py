"""The query of a request: which parameters a call takes, each at most once.

A parameter that is misspelt or given twice is refused; otherwise one of two would silently count.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from starlette.datastructures import QueryParams

from serve_app.errors import bad_request
from serve_app.limits import parse_whole
from serve_app.shown import shown

WORD = "bad_parameter"
LARGEST = 10**18


def check_query(query: QueryParams, known: Sequence[str]) -> None:
    """Raise `RequestError` (400) for a parameter that is not known or is given twice."""
    seen: set[str] = set()
    for name, _ in query.multi_items():
        if name not in known:
            nearest = difflib.get_close_matches(name[:100], known, n=1)
            expected = f"expected {', '.join(known)}" if known else "this call takes none"
            advice = f"did you mean {nearest[0]!r}?" if nearest else expected
            raise bad_request(f"unknown query parameter {shown(name)}; {advice}", WORD)
        if name in seen:
            raise bad_request(f"query parameter {name!r} is given twice", WORD)
        seen.add(name)


def whole_number(
    query: QueryParams, name: str, *, least: int = 0, most: int = LARGEST
) -> int | None:
    """Return a whole number of the query, None where it is not given. Raises `RequestError` (400)
    for one outside the bounds.
    """
    text = query.get(name)
    if text is None:
        return None
    value = parse_whole(text)
    if value is None or not least <= value <= most:
        upto = "" if most == LARGEST else f" to {most:,}"
        raise bad_request(
            f"{name} must be a whole number from {least}{upto}, got {shown(text)}", WORD
        )
    return value
