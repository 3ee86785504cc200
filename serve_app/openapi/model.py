"""The OpenAPI document of one model: only the calls that it answers, with its own classes, sizes
and limits, every status that can come, and examples that can be sent as they stand.

Paths are relative to the place where the model is mounted, which is the document's server. It knows
nothing of Serve.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from serve_app.documents import BELOW, CONTENT_TYPES, document_names
from serve_app.model import ServedModel
from serve_app.openapi.infer import infer_operation, protocol_operations, protocol_schemas
from serve_app.openapi.labels import label_operations, label_schemas
from serve_app.openapi.parts import (
    BINARY,
    JSON,
    PIXEL,
    UPLOAD_CODES,
    Codes,
    Schema,
    answer,
    body,
    closed,
    document,
    halves,
    operation,
    query,
    ref,
    unit_vector,
)

Paths = dict[str, dict[str, Any]]
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/gif", "image/bmp")
WHOLE_NUMBER = {"type": "integer", "minimum": 0}
# What may be wrong with one image, or with the request that holds it.
IMAGE_CODES: Codes = {
    413: ("image_too_large", "too_many_images", "body_too_large"),
    415: ("image_type", "content_encoding"),
    422: ("image_decode",),
    429: ("queue_full",),
    500: ("engine", "internal"),
    503: ("deadline",),
}


def model_document(model: ServedModel, root: str) -> dict[str, Any]:
    """Return the document of a model that is mounted at the path `root`."""
    name, version = model.manifest.name, model.manifest.version
    calls = {name: CALLS[name](model, root) for name in sorted(model.kind.calls)}
    paths: Paths = {
        **{f"/{name}": {"post": call} for name, call in calls.items()},
        "/infer": {"post": infer_operation(model, root)},
        **protocol_operations(model, root),
        **document_operations(model, root),
    }
    schemas = {**image_schemas(model), **protocol_schemas(model)}
    if model.kind.has_label_map:
        paths |= label_operations(model, root)
        schemas |= label_schemas()
    return document(
        title=f"{name}, version {version}",
        about=_about(model),
        servers=(root, f"{root}/versions/{version}"),
        paths=paths,
        schemas=schemas,
    )


def _about(model: ServedModel) -> str:
    limits = model.limits
    classes = [entry.name for entry in model.manifest.classes]
    said = (
        f"A model of kind `{model.kind.name}`. A request has at most {limits.max_images} images "
        f"and {limits.max_body_bytes:,} bytes; an image at most {limits.max_image_bytes:,} bytes "
        f"and {limits.max_pixels:,} pixels."
    )
    views = " Clients of the protocol that insist on one input and one output find the model again "
    views += "below `/views/{input}`, the address of a server of its own."
    return said + (f" Classes: {', '.join(classes)}." if classes else "") + views


def document_operations(model: ServedModel, root: str) -> Paths:
    """Return the calls that answer with the documents of the bundle."""
    found: Paths = {}
    for name in document_names(model.manifest):
        path, suffix = f"{BELOW}/{name}", PurePath(name).suffix
        media_type = CONTENT_TYPES[suffix].partition(";")[0]
        call = operation(
            f"document_{re.sub('[^A-Za-z0-9]', '_', name)}",
            f"{name} of the bundle",
            tag="about",
            scope="infer",
            answers={200: answer("The file", {media_type: {}})},
            codes={503: ("bundle_store", "deadline")},
            curl=f"curl -O '{{server}}{root}{path}'",
        )
        found[path] = {"get": call}
    return found


# --- classify and embed --------------------------------------------------------------------------


def _classify(model: ServedModel, root: str) -> dict[str, Any]:
    has_map = model.kind.has_label_map
    parameters = [
        query("top_k", {"type": "integer", "minimum": 1, "default": 5}, "how many scores"),
        query(
            "scores",
            {"type": "string", "enum": ["top", "all", "none"], "default": "top"},
            "the best `top_k`, all, or none",
        ),
    ]
    if has_map:
        about = "wait until this label revision is in effect; 409 where it cannot be had"
        parameters.append(query("min_revision", {**WHOLE_NUMBER, "default": 0}, about))
    return operation(
        "classify",
        "Which class an image shows",
        "One image is answered with one object. Several are answered with a list in the order "
        "sent, in which an image that cannot be read has its error and the others their answers.",
        tag="score",
        scope="infer",
        parameters=parameters,
        request=_images_body(model),
        answers={200: answer("The answer", _one_or_several("Classification", _answered(model)))},
        codes={
            **IMAGE_CODES,
            **UPLOAD_CODES,
            400: (*UPLOAD_CODES[400], "bad_parameter", *FORMS),
            **({409: ("label_revision",)} if has_map else {}),
        },
        curl=f"curl --data-binary @photo.jpg '{{server}}{root}/classify?top_k=3'",
    )


def _embed(model: ServedModel, root: str) -> dict[str, Any]:
    vector = unit_vector(model.manifest.outputs.embedding)
    good = answer(
        "One vector of length 1 per image. `Accept: application/octet-stream` asks for them as "
        "little-endian float32, row after row",
        _one_or_several("Embedding", {"embedding": vector, **model.facts}),
    )
    good["content"][BINARY] = {}
    good["headers"] = {
        "Sightline-Shape": {
            "description": "rows and columns of an answer in bytes",
            "schema": {"type": "string", "pattern": "^[0-9]+,[0-9]+$"},
            "example": f"1,{len(vector)}",
        }
    }
    return operation(
        "embed",
        "The vector of an image: like images have vectors near each other",
        "In JSON an image that cannot be read has its error in its place; bytes have no room for "
        "that, so there the first bad image is the request's error.",
        tag="score",
        scope="infer",
        request=_images_body(model),
        answers={200: good},
        codes={
            **IMAGE_CODES,
            **UPLOAD_CODES,
            400: (*UPLOAD_CODES[400], "bad_parameter", *FORMS),
        },
        curl=f"curl --data-binary @photo.jpg '{{server}}{root}/embed'",
    )


CALLS = {"classify": _classify, "embed": _embed}
FORMS = ("bad_json", "bad_base64", "bad_multipart", "not_a_file", "no_image")


def _images_body(model: ServedModel) -> dict[str, Any]:
    most = model.limits.max_images
    raw: dict[str, Schema] = {media_type: {} for media_type in (BINARY, *IMAGE_TYPES)}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    return body(
        "One image as it is, several as multipart files under any field name, or base64 in JSON",
        {
            **raw,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {**files, "minItems": 1, "maxItems": most}},
                    "required": ["image"],
                }
            },
            JSON: {
                "schema": {"oneOf": [ref("OneImage"), ref("SeveralImages")]},
                "examples": {
                    "one": {"summary": "One image", "value": {"image": PIXEL}},
                    "several": {
                        "summary": "Two images",
                        "value": {"images": [PIXEL, PIXEL][:most]},
                    },
                },
            },
        },
    )


def image_schemas(model: ServedModel) -> dict[str, Schema]:
    """Return the schemas of what `classify` and `embed` take and answer."""
    text = {
        "type": "string",
        "contentEncoding": "base64",
        "description": "an image file in base64, or a base64 data URL; no address is ever fetched",
    }
    several = {
        "type": "array",
        "items": ref("Base64Image"),
        "minItems": 1,
        "maxItems": model.limits.max_images,
    }
    schemas = {
        "Base64Image": text,
        "OneImage": closed({"image": ref("Base64Image")}),
        "SeveralImages": closed({"images": several}),
        "ImageError": _image_error(),
    }
    names = {"classify": "Classification", "embed": "Embedding"}
    for call in sorted(model.kind.calls):
        fields, optional = answered_fields(model, call)
        schemas |= _answer_schemas(model, names[call], fields, optional)
    return schemas


def answered_fields(model: ServedModel, call: str) -> tuple[dict[str, Schema], set[str]]:
    """Return the fields that a call answers for one image, and which of them may be left out."""
    if call == "embed":
        width = model.manifest.outputs.embedding
        numbers = {"type": "array", "items": {"type": "number"}}
        return {"embedding": {**numbers, "minItems": width, "maxItems": width}}, set()
    label: Schema = {"type": "string", "minLength": 1}
    if not model.kind.has_label_map:
        label = {"type": "string", "enum": [entry.name for entry in model.manifest.classes]}
    probability = {"type": "number", "minimum": 0, "description": "0 to 1"}
    scores = {
        "type": "array",
        "description": "the best first; left out with `scores=none`",
        "items": closed({"label": label, "probability": probability}),
        "maxItems": len(model.manifest.classes),
    }
    return {"label": label, "confidence": probability, "scores": scores}, {"scores"}


def _answer_schemas(
    model: ServedModel, name: str, fields: dict[str, Schema], optional: set[str]
) -> dict[str, Schema]:
    facts = _facts(model, with_revision=name == "Classification")
    place = {"index": WHOLE_NUMBER, "file": {"type": "string", "description": "its file name"}}
    results = {
        "type": "array",
        "items": {"oneOf": [ref(f"{name}Entry"), ref("ImageError")]},
        "minItems": 1,
        "maxItems": model.limits.max_images,
    }
    return {
        name: closed({**fields, **facts}, optional),
        f"{name}Entry": closed({**place, **fields}, {"file", *optional}),
        f"{name}s": closed({"results": results, **facts}),
    }


def _facts(model: ServedModel, *, with_revision: bool) -> dict[str, Schema]:
    facts: dict[str, Schema] = {name: {"const": value} for name, value in model.facts.items()}
    if with_revision and model.kind.has_label_map:
        facts["label_revision"] = {**WHOLE_NUMBER, "description": "which labels it was read with"}
    return facts


def _image_error() -> Schema:
    codes = ["image_type", "image_too_large", "image_decode", "bad_base64"]
    fields = {"error": {"type": "string"}, "code": {"type": "string", "enum": codes}}
    return closed({"index": WHOLE_NUMBER, "file": {"type": "string"}, **fields}, {"file"})


def _one_or_several(name: str, example: Any) -> dict[str, Any]:
    return {
        JSON: {
            "schema": {"oneOf": [ref(name), ref(f"{name}s")]},
            "examples": {"one": {"summary": "One image", "value": example}},
        }
    }


def _answered(model: ServedModel) -> dict[str, Any]:
    """Return an answer as it may come, with the model's own classes."""
    names = [entry.name for entry in model.manifest.classes][:5]
    parts = halves(len(names))
    revision = {"label_revision": 0} if model.kind.has_label_map else {}
    return {
        "label": names[0],
        "confidence": parts[0],
        "scores": [
            {"label": label, "probability": part} for label, part in zip(names, parts, strict=True)
        ],
        **model.facts,
        **revision,
    }
