"""A client's value as it stands in a message: quoted, and short however long or deep it is."""

from __future__ import annotations

from reprlib import Repr

MAX_LENGTH = 120

_short = Repr()
_short.maxstring = MAX_LENGTH


def shown(value: object) -> str:
    """Return the value in at most some hundred characters."""
    return _short.repr(value)
