"""What a client sends to change labels, read and checked: a change, who makes it, and on what base.

It knows nothing of where labels are kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from models.label_edits import parse_edits
from models.label_map import parse_map
from models.label_revision import Author, Change
from serve_app.errors import bad_request
from serve_app.limits import parse_whole, read_body
from serve_app.queries import check_query
from serve_app.request import Request
from serve_app.routing import MAX_BODY_BYTES
from serve_app.uploads import parse_json

MAX_JSON_VALUES = 200_000
UPLOAD_SECONDS = 10.0
MAX_EDITS = 10_000
COMMON = ("base", "author", "reason", "request_key", "effective_at")
TRUTH = {"true": True, "1": True, "false": False, "0": False}
_TIME: TypeAdapter[AwareDatetime] = TypeAdapter(AwareDatetime)


@dataclass(frozen=True)
class Write:
    """One write that a client asks for."""

    change: Change
    author: Author
    base: int | None
    is_dry_run: bool


async def read_write(request: Request, key: str) -> Write:
    """Read a change of edits or of a whole map, made with the access key of that name."""
    value = await _read_object(request, ("edits", "map", *COMMON))
    if ("edits" in value) == ("map" in value):
        raise bad_request('expected either "edits" or "map", and got both or neither')
    if "map" in value:
        return _write(request, value, key, parse_map(value["map"], '"map"'))
    edits = value["edits"]
    if not isinstance(edits, list) or not 1 <= len(edits) <= MAX_EDITS:
        raise bad_request(f'"edits" must be a list of 1 to {MAX_EDITS:,} edits, got {shown(edits)}')
    return _write(request, value, key, parse_edits(edits))


async def read_rollback(request: Request, key: str) -> Write:
    """Read to which revision to go back."""
    value = await _read_object(request, ("revision", *COMMON))
    if "revision" not in value:
        raise bad_request('"revision" is missing: the revision to go back to')
    return _write(request, value, key, _number(value["revision"], '"revision"'))


async def _read_object(request: Request, known: tuple[str, ...]) -> Mapping[str, Any]:
    check_query(request.query, ("dry_run",))
    body = await read_body(request, MAX_BODY_BYTES, UPLOAD_SECONDS)
    value = parse_json(body, MAX_JSON_VALUES)
    if not isinstance(value, dict):
        raise bad_request(f"expected a JSON object, got {type(value).__name__}", "bad_json")
    for name in value:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            raise bad_request(f"unknown field {shown(name)}; {advice}")
    return value


def _write(request: Request, value: Mapping[str, Any], key: str, change: Change) -> Write:
    headers = request.headers
    author = Author(
        name=_text(value, "author", 200) or key,
        reason=_text(value, "reason", 2000),
        request_key=_text(value, "request_key", 200) or headers.get("idempotency-key", "")[:200],
        effective_at=_time(value.get("effective_at")),
        key=key,
    )
    return Write(change, author, _base(value, headers.get("if-match")), _is_dry_run(request))


def _base(value: Mapping[str, Any], if_match: str | None) -> int | None:
    if value.get("base") is not None:
        return _number(value["base"], '"base"')
    if if_match is None or if_match.strip() == "*":
        return None
    base = parse_whole(if_match.strip().removeprefix("W/").strip('"'))
    if base is None:
        raise bad_request(f'If-Match must be a revision, as in "7", got {shown(if_match)}')
    return base


def _is_dry_run(request: Request) -> bool:
    text = request.query.get("dry_run", "false").lower()
    if text not in TRUTH:
        raise bad_request(f"dry_run must be true or false, got {shown(text)}", "bad_parameter")
    return TRUTH[text]


def _number(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 10**12:
        raise bad_request(f"{name} must be the number of a revision, got {shown(value)}")
    return value


def _text(value: Mapping[str, Any], name: str, longest: int) -> str:
    text = value.get(name)
    if text is None:
        return ""
    if not isinstance(text, str) or len(text) > longest:
        raise bad_request(f'"{name}" must be a text of up to {longest} characters')
    return text


def _time(value: object) -> AwareDatetime | None:
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        return _TIME.validate_python(value)
    except (ValidationError, ValueError) as error:
        raise bad_request(
            '"effective_at" must be a time with its zone, as 2026-12-01T06:00+01:00, got '
            f"{shown(value)}"
        ) from error
