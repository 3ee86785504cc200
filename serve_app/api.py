"""The calls for people: `classify` and `embed`.

One image is answered with one object or one status; several with a list in which a bad image has
its error and the others their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import numpy as np
from starlette.datastructures import QueryParams

from models.errors import SightlineError
from models.labels import Answer, Scores
from models.predictor import Prediction
from serve_app.errors import RequestError, bad_request, explain, status_of
from serve_app.model import ServedModel
from serve_app.queries import check_query, whole_number
from serve_app.replies import BINARY, Reply, json_reply
from serve_app.request import NO_QUERY, Request
from serve_app.routing import Handler
from serve_app.shown import shown
from serve_app.uploads import Upload, read_upload

DEFAULT_TOP_K = 5
SCORES = get_args(Scores)
SHAPE_HEADER = "Sightline-Shape"  # rows,columns of an answer in bytes

Entry = dict[str, Any]
NO_FACTS: Mapping[str, object] = {}


def classify(model: ServedModel) -> Handler:
    """Return the call that answers with labels."""

    async def call(request: Request) -> Reply:
        top_k, scores, min_revision = _read_query(request.query)
        upload = await read_upload(request, model.limits)
        labels = model.labels
        reading = await labels.at_least(min_revision) if min_revision else labels.current()
        model.note_reading(reading)

        def entry(prediction: Prediction) -> Entry:
            assert prediction.probabilities is not None  # else the kind has no such call
            answer = reading.read(prediction.probabilities[0], top_k=top_k, scores=scores)
            model.note_answer(answer, reading)
            return _label_entry(answer, scores)

        return await _answer(model, upload, entry, labels.facts(reading))

    return call


def embed(model: ServedModel) -> Handler:
    """Return the call that answers with vectors of unit length."""

    async def call(request: Request) -> Reply:
        check_query(request.query, ())
        upload = await read_upload(request, model.limits)
        if BINARY in request.headers.get("accept", ""):
            return await _embed_bytes(model, upload)
        return await _answer(
            model, upload, lambda prediction: {"embedding": prediction.embedding[0]}
        )

    return call


# The kinds table names the calls of a kind; here is who answers them.
CALLS: Mapping[str, Callable[[ServedModel], Handler]] = {"classify": classify, "embed": embed}


async def _answer(
    model: ServedModel,
    upload: Upload,
    entry: Callable[[Prediction], Entry],
    facts: Mapping[str, object] = NO_FACTS,
) -> Reply:
    if upload.is_single:
        (image,) = upload.images
        if isinstance(image, SightlineError):
            raise image
        scored = await model.score(image)
        with model.statistics.output():
            return json_reply({**entry(scored), **model.facts, **facts})
    each = await model.score_each(upload.images)
    with model.statistics.output():
        results: list[Entry] = []
        for index, one in enumerate(each):
            result: Entry = {"index": index}
            if upload.files:
                result["file"] = upload.files[index]
            if isinstance(one, SightlineError):
                model.note_image_error(one)
                result |= explain(one)
            else:
                result |= entry(one)
            results.append(result)
        return json_reply({"results": results, **model.facts, **facts})


async def _embed_bytes(model: ServedModel, upload: Upload) -> Reply:
    rows = []
    for index, scored in enumerate(await model.score_each(upload.images)):
        if isinstance(scored, SightlineError):
            # Bytes have no room for an error beside the vectors of the other images.
            where = "" if upload.is_single else f"image {index}: "
            raise RequestError(status_of(scored), scored.code, f"{where}{scored}")
        rows.append(scored.embedding)
    vectors = np.concatenate(rows).astype("<f4", copy=False)
    shape = ",".join(map(str, vectors.shape))
    return Reply(vectors.tobytes(), content_type=BINARY, headers={SHAPE_HEADER: shape})


def _label_entry(answer: Answer, scores: Scores) -> Entry:
    entry: Entry = {"label": answer.label, "confidence": answer.confidence}
    if scores != "none":
        entry["scores"] = [
            {"label": score.label, "probability": score.probability} for score in answer.scores
        ]
    return entry


def _read_query(query: QueryParams) -> tuple[int, Scores, int]:
    if query is NO_QUERY:
        return DEFAULT_TOP_K, "top", 0
    check_query(query, ("top_k", "scores", "min_revision"))
    top_k = whole_number(query, "top_k", least=1) or DEFAULT_TOP_K
    scores = query.get("scores", "top")
    if scores not in SCORES:
        raise bad_request(
            f"scores must be one of {', '.join(SCORES)}, got {shown(scores)}", "bad_parameter"
        )
    return top_k, cast(Scores, scores), whole_number(query, "min_revision") or 0
