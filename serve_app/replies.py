"""An HTTP answer as three values, and the two messages that send it.

Answers are whole and small, so they need no response class: the body is serialised once, by orjson,
and leaves in one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Send

from serve_app.trace import KEY

JSON = "application/json"
BINARY = "application/octet-stream"
REQUEST_ID = KEY.encode()


@dataclass(frozen=True)
class Reply:
    """One whole answer."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Serialise a value (numpy arrays and scalars included) to JSON."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Reply(body, status, headers=headers or {})


async def send_reply(reply: Reply, send: Send, request_id: str = "") -> None:
    """Send the answer as ASGI messages, with the id of its request where one is given."""
    # A 304 would have to tell the length of the answer that it stands for (RFC 9110, 8.6).
    length = [] if reply.status == 304 else [(b"content-length", str(len(reply.body)).encode())]
    headers = [
        (b"content-type", reply.content_type.encode()),
        *length,
        *((name.lower().encode(), value.encode()) for name, value in reply.headers.items()),
    ]
    if request_id:
        headers.append((REQUEST_ID, request_id.encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
