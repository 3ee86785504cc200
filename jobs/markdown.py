"""Names and sentences from a set as text of a Markdown page."""

from __future__ import annotations


def plain(value: str) -> str:
    """Return a text of the set so that it is no Markdown and no HTML, also in a table's cell."""
    escaped = "".join(
        f"\\{letter}" if letter in r"\`*_[]<>|#!" else letter for letter in value.strip()
    )
    return " ".join(escaped.split())
