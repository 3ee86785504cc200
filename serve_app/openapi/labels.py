"""The calls that show and change a label map, in a model's OpenAPI document.

The schemas of edits and maps come from the very classes that read them.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from models.label_edits import Edit
from models.label_map import LabelMap, identity_map
from models.what_if import WhatIf
from serve_app.label_body import MAX_EDITS
from serve_app.labels_api import DEFAULT_LISTED, MAX_LISTED
from serve_app.model import ServedModel
from serve_app.openapi.parts import (
    JSON,
    UPLOAD_CODES,
    Schema,
    body,
    closed,
    header,
    in_path,
    json_answer,
    operation,
    query,
    ref,
)

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0, "maximum": 10**12 - 1}
TIME: Schema = {"type": "string", "format": "date-time"}
NO_TIME: Schema = {"anyOf": [TIME, {"type": "null"}]}
ABOUT = "`dry_run=true` stores nothing and tells what would change."
EXAMPLE_TIME = "2026-12-01T06:00:00+01:00"
READ_CODES = {503: ("label_store",)}
WRITE_CODES = {
    **UPLOAD_CODES,
    400: ("bad_request", "bad_json", "bad_parameter", "label_edit", "label_map"),
    409: ("request_key",),
    412: ("stale_base",),
    413: ("body_too_large",),
    415: ("content_encoding",),
    503: ("label_store",),
}


def label_operations(model: ServedModel, root: str) -> dict[str, dict[str, Any]]:
    """Return the calls."""
    name = model.manifest.name
    names = [entry.name for entry in model.manifest.classes]
    label_map = identity_map(model.manifest.classes).model_dump(mode="json")
    edit = {"op": "rename", "label": names[0], "name": f"{names[0]} 2", "keep_alias": True}
    edits = {"edits": [edit], "base": 7, "author": "ann", "reason": "new wording"}
    change = {"label": names[0], "field": "name", "before": names[0], "after": f"{names[0]} 2"}
    told = {**change, "text": f"label '{names[0]}': name {names[0]} -> {names[0]} 2"}
    about = {"author": "ann", "reason": "new wording", "time": EXAMPLE_TIME, "effective_at": None}
    listed = {"number": 8, "parent": 7, "key": "office", "edits": [edit], **about}
    written = {
        "model": name,
        "revision": 8,
        "base": 7,
        "dry_run": False,
        "changes": [told],
        "notes": [],
        "replicas": {"asked": 2, "confirmed": 2},
    }
    now = {
        **{"model": name, "revision": 8, "map_revision": 8, "in_effect": 8},
        **about,
        **{"problem": "", "map": label_map},
    }
    curl = f"curl '{{server}}{root}/labels"
    send = f"curl -H 'X-API-Key: KEY' -H 'Content-Type: {JSON}'"
    return {
        "/labels": {
            "get": operation(
                "labels",
                "The label map: the newest, and the revision in effect",
                tag="labels",
                scope="infer",
                answers={200: _tagged("The map", "Labels", now)},
                codes={400: ("bad_parameter",)},
                curl=f"{curl}'",
            ),
            "put": operation(
                "changeLabels",
                "Change the labels: by edits, or by a whole map",
                f"{ABOUT} A whole map needs a base. All edits are done, or none.",
                tag="labels",
                scope="admin",
                parameters=_write_parameters(),
                request=body(
                    "Edits or a map, and who changes what for which reason",
                    {
                        JSON: {
                            "schema": {"oneOf": [ref("ChangeByEdits"), ref("ChangeByMap")]},
                            "examples": {
                                "edits": {"summary": "One edit", "value": edits},
                                "map": {
                                    "summary": "A whole map",
                                    "value": {"map": label_map, "base": 7, "author": "ann"},
                                },
                            },
                        }
                    },
                ),
                answers={200: _tagged("What has changed, or would", "LabelWrite", written)},
                codes=WRITE_CODES,
                curl=f"{send} -X PUT -d '{json.dumps(edits)}' '{{server}}{root}/labels'",
            ),
        },
        "/labels/rollback": {
            "post": operation(
                "rollBackLabels",
                "Make the map of an older revision the newest again",
                ABOUT,
                tag="labels",
                scope="admin",
                parameters=_write_parameters(),
                request=body(
                    "Which revision, and who goes back for which reason",
                    {
                        JSON: {
                            "schema": ref("Rollback"),
                            "example": {"revision": 3, "author": "ann", "reason": "too early"},
                        }
                    },
                ),
                answers={200: _tagged("What has changed, or would", "LabelWrite", written)},
                codes={**WRITE_CODES, 404: ("not_found",)},
                curl=f"{send} -d '{{\"revision\": 3}}' '{{server}}{root}/labels/rollback'",
            )
        },
        "/labels/diff": {
            "get": operation(
                "diffLabels",
                "What has changed between two revisions",
                tag="labels",
                scope="infer",
                parameters=[
                    query("since", NUMBER, "the one before `to`, if left out"),
                    query("to", NUMBER, "the newest, if left out"),
                ],
                answers={
                    200: json_answer(
                        "The changes",
                        ref("LabelDiff"),
                        {"model": name, "since": 7, "to": 8, "changes": [told]},
                    )
                },
                codes={400: ("bad_parameter", "label_map"), 404: ("not_found",), **READ_CODES},
                curl=f"{curl}/diff?since=0'",
            )
        },
        "/labels/revisions": {
            "get": operation(
                "labelRevisions",
                "The revisions, newest first; one that cannot be read has its error",
                tag="labels",
                scope="infer",
                parameters=[_limit()],
                answers={
                    200: json_answer(
                        "The revisions",
                        ref("LabelRevisions"),
                        {"model": name, "revisions": [listed]},
                    )
                },
                codes={400: ("bad_parameter",), **READ_CODES},
                curl=f"{curl}/revisions?limit=5'",
            )
        },
        "/labels/revisions/{number}": {
            "get": operation(
                "labelRevision",
                "One revision with its map",
                tag="labels",
                scope="infer",
                parameters=[in_path("number", NUMBER, "its number")],
                answers={
                    200: json_answer(
                        "The revision", ref("LabelRevision"), {**listed, "map": label_map}
                    )
                },
                codes={
                    400: ("bad_parameter", "label_map"),
                    404: ("not_found",),
                    **READ_CODES,
                },
                curl=f"{curl}/revisions/0'",
            )
        },
    }


def label_schemas() -> dict[str, Schema]:
    """Return the schemas of the calls above."""
    change = closed(
        {
            "label": {"type": ["string", "null"], "description": "its id; null: of the map itself"},
            "field": TEXT,
            "before": {},
            "after": {},
            "text": {**TEXT, "description": "the change as one line"},
        }
    )
    author: dict[str, Schema] = {"author": TEXT, "reason": TEXT, "time": TIME}
    author["effective_at"] = NO_TIME
    listed: dict[str, Schema] = {
        "number": NUMBER,
        "parent": NUMBER,
        "key": {**TEXT, "description": "the name of the access key it was written with"},
        "edits": {"type": "array", "items": {"type": "object"}},
        **author,
    }
    broken = closed({"number": NUMBER, "error": TEXT})
    common: dict[str, Schema] = {
        "base": {"anyOf": [NUMBER, {"type": "null"}], "description": "the revision seen"},
        "author": {
            "type": "string",
            "maxLength": 200,
            "description": "the key's name, if left out",
        },
        "reason": {"type": "string", "maxLength": 2000},
        "request_key": {"type": "string", "maxLength": 200, "description": "of a write sent again"},
        "effective_at": {
            **NO_TIME,
            "description": "when all replicas switch; at once, if left out",
        },
    }
    edits = {"type": "array", "items": ref("LabelEdit"), "minItems": 1, "maxItems": MAX_EDITS}
    labels = closed(
        {
            "model": TEXT,
            "revision": {**NUMBER, "description": "the newest, on which a change is made"},
            "map_revision": {
                **NUMBER,
                "description": "that of `map`: an older one where the newest cannot be used here",
            },
            "in_effect": {**NUMBER, "description": "what this replica reads with now"},
            **author,
            "problem": TEXT,
            "map": ref("LabelMap"),
        },
        set(author),  # left out where the store does not answer
    )
    write = closed(
        {
            "model": TEXT,
            "revision": {**NUMBER, "description": "on a dry run the base"},
            "base": NUMBER,
            "dry_run": {"type": "boolean"},
            "changes": {"type": "array", "items": change},
            "notes": {"type": "array", "items": TEXT},
            "replicas": closed({"asked": NUMBER, "confirmed": NUMBER}),
            "what_if": {"anyOf": [ref("WhatIf"), {"type": "null"}]},
        },
        {"replicas", "what_if"},
    )
    about: dict[str, Schema] = {"model": TEXT}
    changes = {"type": "array", "items": change}
    return {
        **_generated(),
        "ChangeByEdits": closed({"edits": edits, **common}, set(common)),
        "ChangeByMap": closed({"map": ref("LabelMap"), **common}, set(common) - {"base"}),
        "Rollback": closed({"revision": NUMBER, **common}, set(common)),
        "Labels": labels,
        "LabelWrite": write,
        "LabelDiff": closed({**about, "since": NUMBER, "to": NUMBER, "changes": changes}),
        "LabelRevisions": closed(
            {**about, "revisions": {"type": "array", "items": {"oneOf": [closed(listed), broken]}}}
        ),
        "LabelRevision": closed({**listed, "map": ref("LabelMap")}),
    }


def _generated() -> dict[str, Schema]:
    """Return the schemas of edits, maps and what-if reports as their classes state them."""
    template = "#/components/schemas/{model}"
    found: dict[str, Schema] = {}
    adapters: dict[str, TypeAdapter[Any]] = {
        "LabelEdit": TypeAdapter(Edit),
        "LabelMap": TypeAdapter(LabelMap),
        "WhatIf": TypeAdapter(WhatIf),
    }
    for name, adapter in adapters.items():
        schema = adapter.json_schema(ref_template=template)
        found |= schema.pop("$defs", {})
        found[name] = schema
    return found


def _write_parameters() -> list[dict[str, Any]]:
    words = {"type": "string", "enum": ["true", "false", "1", "0"], "default": "false"}
    return [
        query("dry_run", words, "store nothing"),
        header("If-Match", TEXT, 'the base, as in `"7"`; the same as `base`'),
        header("Idempotency-Key", TEXT, "the same as `request_key`"),
    ]


def _limit() -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": DEFAULT_LISTED}
    return query("limit", schema, "how many")


def _tagged(about: str, schema: str, example: Any) -> dict[str, Any]:
    tag = {"description": "the revision", "schema": TEXT, "example": '"8"'}
    return {**json_answer(about, ref(schema), example), "headers": {"ETag": tag}}
