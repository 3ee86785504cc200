"""What OpenAPI documents are put together from: operations, bodies, answers, errors.

Every error has one form and a code; the table here has a sentence for each code as clients see it.
It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.oip.identity import server_metadata
from serve_app.trace import HEADER, LONGEST_ID

Schema = dict[str, Any]
Codes = Mapping[int, Sequence[str]]  # status -> the codes that it comes with

OPENAPI = "3.1.0"
JSON, BINARY = "application/json", "application/octet-stream"
REQUEST_ID = "RequestId"  # the component
SERVER = "http://localhost:8000"  # in examples; the page puts its own address there

# One pixel, as a PNG: the smallest image that can be sent as it stands.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC"
)

# What each code looks like to a client.
SENTENCES: Mapping[str, str] = {
    "admin_closed": "no admin key is configured, so nothing can be changed here",
    "bad_base64": "not valid base64: Incorrect padding",
    "bad_encoding": "the body breaks off before the end of its gzip data",
    "bad_json": "the body is not valid JSON: unexpected end of data",
    "bad_multipart": "the multipart body ends before its final boundary; the upload was cut short",
    "bad_parameter": "unknown query parameter 'topk'; did you mean 'top_k'?",
    "bad_request": "Content-Length must be a whole number, got 'many'",
    "body_too_large": "the body has 70,000,000 bytes; the limit is 67,108,864 per request",
    "bundle_store": "the bundle store does not answer; the replica's log has the reason",
    "closed": "the model is closed",
    "content_encoding": "the body is compressed with 'br'; send it as it is",
    "declarative": "cannot unload 'elpv': what is served stands in the serve file",
    "engine": "the server failed; the reason is in its log",
    "deadline": "no answer within 60 s of the request's arrival; try again after 1 s",
    "forbidden": "the key 'line-4' has not the scope 'admin'",
    "image_decode": "damaged JPEG: image file is truncated",
    "image_too_large": "the image has 20,000 x 20,000 pixels (400 million), more than the limit",
    "image_type": "not an image: the first bytes are b'hello'; expected one of JPEG, PNG, ...",
    "internal": "the server failed; the reason is in its log",
    "label_edit": "edit 0: no label 'goood'; did you mean 'good'?",
    "label_map": "the edits change nothing",
    "label_revision": "label revision 9 is not in effect here, 7 is",
    "label_store": "the label store has not answered for 20 s",
    "no_image": "the request holds no image",
    "not_a_file": "the multipart field 'image' is no file; send each image as a file",
    "not_found": "there is no revision 9",
    "not_offered": "this server has no '/v2/trace'",
    "not_ready": "model 'elpv' is LOADING: ",
    "queue_full": "this replica has 96 requests to answer already, with 96 images; "
    "try again after 1 s",
    "request_key": "the request key 'k1' was used for another write, revision 3",
    "stale_base": "revision 6 is not the newest, 7 is; look at it and try again",
    "too_many_images": "the request holds 65 images; the limit is 64 per request, so split it",
    "unauthenticated": "this call needs a key: send `Authorization: Bearer <key>`",
    "unknown_model": "no model 'elpw' here; POST /v2/repository/index lists them",
    "upload_timeout": "the body did not arrive within 60 s",
}
STATUS_WORDS: Mapping[int, str] = {
    400: "The request is malformed",
    401: "A key is needed, or the one sent is not known",
    403: "The key does not open this call",
    404: "There is no such thing",
    408: "The body took too long to arrive",
    409: "Not as things stand now",
    412: "The base is not the newest revision any more",
    413: "More than the limits allow",
    415: "Not a format that is read here",
    422: "An image file, but damaged",
    429: "Busy: try again after the time told",
    500: "The server failed",
    501: "Not offered here",
    503: "Not ready, too busy to answer in time, or what is needed does not answer",
}
STATUS_HEADERS: Mapping[int, tuple[str, str]] = {
    401: ("WWW-Authenticate", "Bearer"),
    429: ("Retry-After", "1"),
    503: ("Retry-After", "1"),
}
# What any call that reads a body may answer.
UPLOAD_CODES: Codes = {400: ("bad_request",), 408: ("upload_timeout",)}
KEY_CODES: Mapping[str, Codes] = {
    "infer": {401: ("unauthenticated",)},
    "admin": {401: ("unauthenticated",), 403: ("admin_closed", "forbidden")},
}
# The details that stand beside `error` and `code`.
DETAILS: Mapping[str, dict[str, Any]] = {
    "label_edit": {"edits": [{"edit": 0, "error": "no label 'goood'; did you mean 'good'?"}]},
    "stale_base": {"revision": 7},
}


def ref(name: str) -> Schema:
    """Return a reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def closed(properties: dict[str, Any], optional: set[str] | None = None) -> Schema:
    """Return the schema of an object that has these fields and no others."""
    required = [name for name in properties if name not in (optional or set())]
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def query(name: str, schema: Schema, about: str) -> dict[str, Any]:
    """Return an optional parameter of the query."""
    return {"name": name, "in": "query", "schema": schema, "description": about}


def header(name: str, schema: Schema, about: str) -> dict[str, Any]:
    """Return an optional header of the request."""
    return {"name": name, "in": "header", "schema": schema, "description": about}


def in_path(name: str, schema: Schema, about: str) -> dict[str, Any]:
    """Return a part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": about}


def body(about: str, content: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """Return the body of a request."""
    return {"description": about, "content": content, "required": required}


def answer(about: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return an answer."""
    return {"description": about, "content": content}


def json_answer(about: str, schema: Schema, example: Any) -> dict[str, Any]:
    """Return an answer in JSON."""
    return answer(about, {JSON: {"schema": schema, "example": example}})


def operation(
    name: str,
    summary: str,
    about: str = "",
    *,
    tag: str,
    answers: Mapping[int, dict[str, Any]],
    curl: str,
    scope: str = "",
    parameters: Sequence[dict[str, Any]] = (),
    request: dict[str, Any] | None = None,
    codes: Codes | None = None,
) -> dict[str, Any]:
    """Return one call. `scope` is that of the key it needs, where keys are configured; `codes` are
    its errors, to which those of the key and of a defect of the server are added.
    """
    every = {**(codes or {}), **KEY_CODES.get(scope, {})}
    every.setdefault(500, ("internal",))
    found: dict[str, Any] = {"operationId": name, "summary": summary, "tags": [tag]}
    if about:
        found["description"] = about
    if scope:
        opened: list[Schema] = [{"bearer": []}, {"key": []}]
        found["security"] = [*opened, {}] if scope == "infer" else opened
    if parameters:
        found["parameters"] = list(parameters)
    if request is not None:
        found["requestBody"] = request
    responses = {
        **{str(status): each for status, each in answers.items()},
        **{str(status): error_answer(status, every[status]) for status in sorted(every)},
    }
    found["responses"] = {status: _with_id(each) for status, each in responses.items()}
    found["x-codeSamples"] = [
        {"lang": "Shell", "label": "curl", "source": curl.replace("{server}", SERVER)}
    ]
    return found


def error_answer(status: int, codes: Sequence[str]) -> dict[str, Any]:
    """Return the answer for the errors of one status."""
    examples = {
        code: {"value": {"error": SENTENCES[code], "code": code, **DETAILS.get(code, {})}}
        for code in codes
    }
    code = {"type": "string", "enum": list(codes)}
    schema = {"allOf": [ref("Error")], "properties": {"code": code}}
    found = answer(STATUS_WORDS[status], {JSON: {"schema": schema, "examples": examples}})
    if status in STATUS_HEADERS:
        name, example = STATUS_HEADERS[status]
        found["headers"] = {name: {"schema": {"type": "string"}, "example": example}}
    return found


def document(
    *,
    title: str,
    about: str,
    servers: Sequence[str],
    paths: dict[str, Any],
    schemas: dict[str, Any],
) -> dict[str, Any]:
    """Return a whole document."""
    return {
        "openapi": OPENAPI,
        "info": {"title": title, "version": server_metadata()["version"], "description": about},
        "servers": [{"url": url} for url in servers],
        "paths": paths,
        "components": {
            "schemas": {"Error": _error_schema(), **schemas},
            "headers": {REQUEST_ID: _request_id()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def halves(count: int) -> list[float]:
    """Return probabilities for an example: each half of the one before, 1 in all."""
    parts = [1 / 2 ** (place + 1) for place in range(count)]
    return [parts[0] + 1 - sum(parts), *parts[1:]]


def unit_vector(width: int) -> list[float]:
    """Return an embedding for an example."""
    return [round(width**-0.5, 4)] * width


def _with_id(found: dict[str, Any]) -> dict[str, Any]:
    header = {HEADER: {"$ref": f"#/components/headers/{REQUEST_ID}"}}
    return {**found, "headers": {**header, **found.get("headers", {})}}


def _request_id() -> dict[str, Any]:
    return {
        "description": "The id of the request, as the logs have it: the one that was sent in a "
        f"header of this name, if it is at most {LONGEST_ID} printable ASCII characters without "
        "spaces, else a new one",
        "schema": {"type": "string", "pattern": f"^[!-~]{{1,{LONGEST_ID}}}$"},
        "example": "0d7c2b4e-6f7f-4c3f-9d0c-6a4f6f0f5a11",
    }


def _error_schema() -> Schema:
    text = {"type": "string", "minLength": 1}
    edit = closed({"edit": {"type": "integer", "minimum": 0}, "error": text})
    return closed(
        {
            "error": {**text, "description": "a sentence for people"},
            "code": {**text, "description": "a word for programs, which never changes"},
            "edits": {"type": "array", "items": edit, "description": "with `label_edit`"},
            "revision": {"type": "integer", "description": "with `stale_base`: the newest"},
        },
        {"edits", "revision"},
    )
