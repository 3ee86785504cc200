"""The Open Inference Protocol for one model: metadata, readiness, configuration, inference.

`tritonclient.http` and KServe's client speak it. What stands in a body is in `tensors`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from starlette.requests import Request

from models.errors import SightlineError
from models.label_map import Reading
from models.predictor import Prediction
from serve_app.errors import RequestError, status_of
from serve_app.limits import read_body
from serve_app.model import ServedModel
from serve_app.peers import Peers
from serve_app.replies import Reply, json_reply
from serve_app.routing import Handler, Routes
from serve_app.tensors import LENGTH_HEADER, Tensor, Wanted, infer_reply, parse_infer

PLATFORM = "sightline"
CONFIG_TYPES = {"FP32": "TYPE_FP32", "UINT8": "TYPE_UINT8", "BYTES": "TYPE_STRING"}


def oip_routes(model: ServedModel, peers: Peers) -> Routes:
    """Return the protocol's routes below the model's own path."""
    metadata, config = _metadata(model), _config(model)

    async def get_metadata(request: Request) -> Reply:
        return json_reply({**metadata, "versions": [str(v) for v in await peers.versions()]})

    async def get_ready(request: Request) -> Reply:
        await model.check()
        return json_reply({"name": model.manifest.name, "ready": True})

    async def get_config(request: Request) -> Reply:
        labels = model.labels.status()
        own = config["sightline"] | ({"labels": labels} if labels else {})
        return json_reply({**config, "sightline": own})

    return {
        "/infer": {"POST": infer(model)},
        "": {"GET": get_metadata},
        "/ready": {"GET": get_ready},
        "/config": {"GET": get_config},
    }


def infer(model: ServedModel) -> Handler:
    """Return the call that runs images given as tensors."""
    spec = model.manifest.preprocess
    outputs = [tensor["name"] for tensor in _metadata(model)["outputs"]]

    async def call(request: Request) -> Reply:
        body = await read_body(request, model.limits.max_body_bytes, model.limits.upload_seconds)
        header = request.headers.get(LENGTH_HEADER)
        asked = parse_infer(body, header, outputs, spec, model.limits)
        reading = model.labels.current()
        if asked.pixels:
            predictions = await model.run_each(asked.pixels)
        else:
            predictions = _all_or_nothing(await model.score_each(asked.encoded))
        with model.statistics.output():
            tensors = [_output(reading, predictions, wanted) for wanted in asked.wanted]
            return infer_reply(model.manifest.name, model.manifest.version, asked.id, tensors)

    return call


def _all_or_nothing(scored: list[Prediction | SightlineError]) -> list[Prediction]:
    """The protocol has no errors per image, so the first bad one is the request's."""
    predictions = []
    for index, entry in enumerate(scored):
        if isinstance(entry, SightlineError):
            where = f"image {index}: " if len(scored) > 1 else ""
            raise RequestError(status_of(entry), entry.code, f"{where}{entry}")
        predictions.append(entry)
    return predictions


def _output(reading: Reading, predictions: list[Prediction], wanted: Wanted) -> Tensor:
    if wanted.name == "embedding":
        embedding = np.concatenate([entry.embedding for entry in predictions])
        return Tensor(wanted.name, embedding, embedding.shape, wanted.is_binary)
    rows = [entry.probabilities[0] for entry in predictions if entry.probabilities is not None]
    if wanted.name == "label":
        labels = [reading.read(row, scores="none").label for row in rows]
        return Tensor(wanted.name, labels, (len(labels),), wanted.is_binary)
    if wanted.num_classes:
        return _classification(reading, rows, wanted)
    probabilities = np.stack(rows)
    return Tensor(wanted.name, probabilities, probabilities.shape, wanted.is_binary)


def _classification(reading: Reading, rows: list[Any], wanted: Wanted) -> Tensor:
    count = min(wanted.num_classes, reading.num_listed)
    lines = [
        f"{score.probability:.6f}:{score.index}:{score.label}"
        for row in rows
        for score in reading.read(row, top_k=count).scores
    ]
    return Tensor(wanted.name, lines, (len(rows), count), wanted.is_binary)


def _metadata(model: ServedModel) -> dict[str, Any]:
    manifest = model.manifest
    spec, widths = manifest.preprocess, manifest.outputs
    outputs = [
        {"name": name, "datatype": "FP32", "shape": [-1, getattr(widths, name)]}
        for name in model.kind.outputs
    ]
    if model.kind.has_classes:
        outputs.append({"name": "label", "datatype": "BYTES", "shape": [-1]})
    return {
        "name": manifest.name,
        "versions": [str(manifest.version)],
        "platform": f"{PLATFORM}_{model.predictor.engine.name}",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, spec.height, spec.width, 3]},
        ],
        "outputs": outputs,
    }


def _config(model: ServedModel) -> dict[str, Any]:
    """Return the form that Triton's clients read (dimensions without the batch), and our own
    facts.
    """
    metadata, manifest, engine = _metadata(model), model.manifest, model.predictor.engine

    def tensor(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": entry["name"],
            "data_type": CONFIG_TYPES[entry["datatype"]],
            "dims": entry["shape"][1:] or [1],
        }

    return {
        "name": manifest.name,
        "platform": metadata["platform"],
        "backend": engine.name,
        "max_batch_size": model.limits.max_images,
        # Send one of the two.
        "input": [{**tensor(entry), "optional": True} for entry in metadata["inputs"]],
        "output": [tensor(entry) for entry in metadata["outputs"]],
        "sightline": {
            "kind": model.kind.name,
            "calls": sorted(model.kind.calls),
            "has_label_map": model.kind.has_label_map,
            "version": manifest.version,
            "bundle": model.predictor.bundle.uri,
            "created": manifest.created,
            "classes": [entry.name for entry in manifest.classes],
            "preprocess": manifest.preprocess.model_dump(),
            "limits": model.limits.model_dump(),
            "engine": {
                "name": engine.name,
                "precision": engine.precision,
                "device": engine.device,
                "feeding": asdict(engine.feeding),
                "refusals": model.predictor.refusals,
            },
            "proof": asdict(model.predictor.proof),
        },
    }
