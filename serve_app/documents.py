"""What a bundle says of itself to people: its report, its card and their pictures, as routes.

A report holds scripts of its own, and whoever may publish a bundle may write it: so it is answered
under a policy that gives it an origin of its own (`sandbox`), where it can read no key that a page
of this server keeps, and can ask nobody anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from models.bundle import Bundle
from models.errors import NotFoundError, StorageError
from models.manifest import Manifest
from serve_app.errors import RequestError
from serve_app.logs import OURS
from serve_app.replies import Reply
from serve_app.request import Request
from serve_app.routing import Handler, Routes

logger = logging.getLogger(OURS)

BELOW = "/documents"
THREADS, STORE_SECONDS = 2, 20.0  # for a store to give a document
REPORT, CARD = "report.html", "model_card.md"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
}
POLICY = "; ".join(
    [
        "sandbox allow-scripts",
        "default-src 'none'",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # Of one version of one model, which never changes; but the path may be of another one some day.
    "Cache-Control": "private, no-cache",
}


def document_names(manifest: Manifest) -> list[str]:
    """Return the documents of a bundle, the report first and the card behind it."""
    names = [
        artifact.path
        for artifact in manifest.artifacts
        if not artifact.engine and PurePath(artifact.path).suffix in CONTENT_TYPES
    ]
    first = {REPORT: 0, CARD: 1}
    return sorted(names, key=lambda name: (first.get(name, 2), name))


def document_routes(bundle: Bundle) -> Routes:
    """Return a route for each document of a bundle. It is fetched when it is first asked for."""
    # Threads of their own: a store that hangs takes none from what scores.
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="documents")
    return {
        f"{BELOW}/{name}": {"GET": _document(bundle, name, threads)}
        for name in document_names(bundle.manifest)
    }


def _document(bundle: Bundle, name: str, threads: ThreadPoolExecutor) -> Handler:
    tag = f'"{bundle.manifest.artifact(name).sha256[:32]}"'
    content_type = CONTENT_TYPES[PurePath(name).suffix]
    headers = {**HEADERS, "ETag": tag}

    async def answer(request: Request) -> Reply:
        if request.headers.get("if-none-match") == tag:
            return Reply(b"", 304, content_type, headers)
        # Off the event loop: it may have to come from a bucket, and its digest is checked.
        reading = asyncio.get_running_loop().run_in_executor(
            threads, lambda: bundle.path(name).read_bytes()
        )
        try:
            body = await asyncio.wait_for(reading, STORE_SECONDS)
        except TimeoutError as error:
            raise RequestError(
                503, "deadline", f"the bundle store has not answered for {STORE_SECONDS:g} s"
            ) from error
        except NotFoundError:  # a bundle that is not whole: trying again does not help
            raise
        except StorageError as error:
            logger.warning("document %s: %s", name, error)
            raise RequestError(
                503,
                "bundle_store",
                "the bundle store does not answer; the replica's log has the reason",
            ) from error
        return Reply(body, content_type=content_type, headers=headers)

    return answer
