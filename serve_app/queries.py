"""The query of a request: which parameters a call takes, each at most once.

A parameter that is misspelt or given twice is refused; otherwise one of two would silently count.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from starlette.datastructures import QueryParams

from serve_app.errors import bad_request
from serve_app.shown import shown

WORD = "bad_parameter"


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
