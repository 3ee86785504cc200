"""Pages that jobs write for people: one HTML file that needs nothing else, neither network nor
server.

Everything that comes from data (paths, labels, messages) is escaped by `text`, and made visible
where it is a character that nobody sees. A policy in the page forbids every script but its own, and
every request.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Sequence
from html import escape
from importlib.resources import files

SHARED = "jobs"


def render_document(title: str, body: str, *, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Return a whole document: `title` is plain text, `body` HTML whose texts are escaped."""
    style = "\n".join(styles)
    script = '"use strict";\n' + "\n".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def text(value: str) -> str:
    """Return a text as HTML shows it."""
    return escape(visible(value), quote=True)


def visible(value: str) -> str:
    """Return a text with its control and format characters (a zero-width space, a change of
    direction) written out.
    """
    return "".join(
        f"\\u{ord(letter):04x}" if unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter
        for letter in value
    )


def asset(package: str, name: str) -> str:
    """Return a file of a package's `page` folder; those that pages share are those of `SHARED`."""
    return (files(package) / "page" / name).read_text(encoding="utf-8")
