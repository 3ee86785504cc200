"""Pages for people as routes: files as they lie in a folder, read once, with headers that keep a
browser from doing anything else with them.

It knows nothing of what a page shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from serve_app.replies import Reply
from serve_app.request import Request
from serve_app.routing import Handler, Routes

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts, styles and calls only from and to this server; no frame, no form, no other base.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self)",
    "Cache-Control": "no-cache",  # asked again each time, and answered 304 while it is the same
}


def page_routes(folder: Path = FOLDER, at: str = "", below: str = "/page") -> Routes:
    """Return the page of a folder at the path `at` and each of its other files below `below`."""
    files = {path.name: _file(path) for path in sorted(folder.iterdir()) if _is_part(path)}
    return {
        at: {"GET": files[INDEX]},
        **{f"{below}/{name}": {"GET": answer} for name, answer in files.items() if name != INDEX},
    }


def _is_part(path: Path) -> bool:
    return path.suffix in CONTENT_TYPES


def _file(path: Path) -> Handler:
    body = path.read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers: Mapping[str, str] = {**HEADERS, "ETag": tag}
    content_type = CONTENT_TYPES[path.suffix]

    async def answer(request: Request) -> Reply:
        if _has(request.headers.get("if-none-match", ""), tag):
            return Reply(b"", 304, content_type, headers)
        return Reply(body, content_type=content_type, headers=headers)

    return answer


def _has(listed: str, tag: str) -> bool:
    """Say whether a client's list of tags has this one; a proxy may have made it a weak one."""
    tags = [each.strip().removeprefix("W/") for each in listed.split(",")]
    return tag in tags or "*" in tags
