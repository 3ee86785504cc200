"""The three ways in which people send images: a raw body, multipart files, base64 in JSON.

Everything that is neither multipart nor JSON is taken as the bytes of one image, whatever its
Content-Type: `curl --data-binary` calls every file a web form. The decoder says what is no image.
"""

from __future__ import annotations

import binascii
import reprlib
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

import orjson

from models.errors import SightlineError
from serve_app.config import Limits
from serve_app.errors import bad_request
from serve_app.limits import check_count, read_body
from serve_app.multipart import read_parts
from serve_app.request import Request

KEYS = ("image", "images")
MAX_JSON_VALUES = 10_000  # beside pixels: lists, objects and commas


@dataclass(frozen=True)
class Upload:
    """The images of one request, in order."""

    images: list[bytes | SightlineError]
    is_single: bool  # one image, answered with one object and not with a list
    files: list[str]  # the names that came with multipart files, else empty


async def read_upload(request: Request, limits: Limits) -> Upload:
    """Read the images of a request. Raises `RequestError` (400, 413) for a malformed one."""
    content_type = request.headers.get("content-type", "")
    body = await read_body(request, limits.max_body_bytes, limits.upload_seconds)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _from_multipart(body, content_type, limits)
    if kind == "application/json":
        return _from_json(body, limits)
    return Upload([body], True, [])


def decode_base64(text: object) -> bytes | SightlineError:
    """Return the bytes of a base64 string or a base64 data URL, or the error that says why not."""
    if not isinstance(text, str):
        return bad_request(f"expected a base64 string, got {type(text).__name__}", "bad_base64")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return b64decode(encoded.replace("\n", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        return bad_request(f"not valid base64: {error}", "bad_base64")


def parse_json(body: bytes | memoryview, max_values: int = MAX_JSON_VALUES) -> Any:
    """Return the JSON value, or raise `RequestError` (400) with the place where it breaks.

    More lists, objects and commas than `max_values` are refused unread: 1 MiB of `[[],[],` takes
    0.16 s, in which nothing else is answered.
    """
    if len(body) > max_values:
        text = bytes(body)
        if text.count(b"[") + text.count(b"{") + text.count(b",") > max_values:
            raise bad_request(
                f"the JSON has more than {max_values:,} lists, objects and commas", "bad_json"
            )
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error}", "bad_json") from error


def _from_multipart(body: bytes, content_type: str, limits: Limits) -> Upload:
    parts = read_parts(body, content_type, limits.max_images)
    check_count(len(parts), limits.max_images)
    return Upload([part.data for part in parts], False, [part.file for part in parts])


def _from_json(body: bytes, limits: Limits) -> Upload:
    value = parse_json(body, limits.max_images + MAX_JSON_VALUES)
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in KEYS:
        raise bad_request(
            'expected {"image": "<base64>"} or {"images": ["<base64>", ...]}, '
            f"got {_describe(value)}",
            "bad_json",
        )
    if "image" in value:
        return Upload([decode_base64(value["image"])], True, [])
    images = value["images"]
    if not isinstance(images, list):
        raise bad_request(f'"images" must be a list, got {type(images).__name__}', "bad_json")
    check_count(len(images), limits.max_images)
    return Upload([decode_base64(image) for image in images], False, [])


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(reprlib.repr, list(value)[:5])) or 'none'}"
    return f"a {type(value).__name__}"
