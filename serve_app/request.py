"""One HTTP request as handlers read it: a view of its ASGI scope.

A class of its own, because Starlette's looks through all headers for each one that is asked for,
which took 30 us of a scored image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope

NO_QUERY = QueryParams()  # of most requests; reading an empty one costs as much as one that is not


class Request:
    """What came with a request. `receive` may be replaced by whoever wants to see the body come,
    and who has read all of it says so; `note_size` by who wants to know what an unpacked one holds.
    """

    __slots__ = ("headers", "is_whole", "note_size", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        self.is_whole = False
        self.note_size: Callable[[int], None] | None = None
        # By names in lower case, as ASGI has them; of several with one name the first counts.
        self.headers: Mapping[str, str] = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])
        }

    @property
    def query(self) -> QueryParams:
        """The parameters behind the question mark."""
        asked = self.scope["query_string"]
        return QueryParams(asked) if asked else NO_QUERY
