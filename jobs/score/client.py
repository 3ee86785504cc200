"""From a few images to one answer for each of them, whatever happens on the way.

Images travel as multipart files, many in one request. A request that the server takes and then
fails on is cut in halves, so that an image on which a server breaks costs one row and not the run.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs.score.answer import Answer
from jobs.score.endpoint import Endpoint
from jobs.score.exchange import Exchange, Missing, Rejected
from jobs.score.patience import Trouble
from jobs.score.reading import Failure, Loaded
from models.errors import EndpointError

BYTES_PER_PART = 200  # more than the headers of one image in a multipart body take
TRIES_TOGETHER = 2  # of a request with several images, before it is cut in halves
TRIES_ALONE = 4  # of one image, before it is found to be the cause
MAX_BLAMED = 20  # images, one after the other


class Client:
    """Scores images with one model. Safe for many threads."""

    def __init__(
        self,
        endpoint: Endpoint,
        exchange: Exchange,
        *,
        calls: Sequence[str],
        query: Mapping[str, str],
    ) -> None:
        """`calls` are `classify`, `embed` or both; `query` goes with `classify`."""
        self._endpoint = endpoint
        self._exchange = exchange
        self._calls = calls
        self._query = query
        self._num_blamed = 0
        self._lock = threading.Lock()

    def score(self, images: Sequence[Loaded]) -> list[Answer]:
        """Return the answers in the order of the images.

        Raises `EndpointError` when the endpoint refuses, or is gone for longer than patience.
        """
        sound = iter(self._ask([each for each in images if each.failure is None]))
        return [
            Answer(each.item, failure=each.failure) if each.failure else next(sound)
            for each in images
        ]

    def _ask(self, images: Sequence[Loaded]) -> list[Answer]:
        """Ask until there is an answer, or patience is at its end."""
        began, tries, may_be_image = time.monotonic(), 0, 0
        while images:
            try:
                answers = self._ask_once(images)
                self._num_blamed = 0
                return answers
            except Rejected as rejected:
                if len(images) > 1:  # something on the way allows less than the model does
                    return self._ask_halves(images)
                return [_failed(images[0], rejected.error, rejected.code)]
            except Missing as missing:
                raise EndpointError(str(missing)) from missing
            except Trouble as trouble:
                may_be_image += trouble.may_be_image
                limit = TRIES_TOGETHER if len(images) > 1 else TRIES_ALONE
                if may_be_image >= limit and self._exchange.is_ready(f"{self._endpoint.url}/ready"):
                    if len(images) > 1:
                        return self._ask_halves(images)
                    return [self._blame(images[0], may_be_image, trouble)]
                self._exchange.patience.pause(trouble, tries, began)
                tries += 1
        return []

    def _ask_halves(self, images: Sequence[Loaded]) -> list[Answer]:
        middle = len(images) // 2
        return [*self._ask(images[:middle]), *self._ask(images[middle:])]

    def _ask_once(self, images: Sequence[Loaded]) -> list[Answer]:
        answers = [Answer(each.item) for each in images]
        for call in self._calls:
            # An image that one call cannot read needs no other.
            open_ = [position for position, each in enumerate(answers) if each.failure is None]
            if not open_:
                break
            sent = [images[position] for position in open_]
            body, content_type = _multipart([each.data for each in sent])
            started = time.perf_counter()
            query = self._query if call == "classify" else None
            reply = self._exchange.post(f"{self._endpoint.url}/{call}", body, content_type, query)
            elapsed = (time.perf_counter() - started) * 1000
            facts = _facts(reply)
            for position, result in zip(open_, _results(reply, len(sent)), strict=True):
                answers[position] = _merge(answers[position], result, facts, elapsed)
        return answers

    def _blame(self, image: Loaded, tries: int, trouble: Trouble) -> Answer:
        """Return the row of an image on which a sound server fails.

        Raises `EndpointError` where it is one image after the other: then it is the server.
        """
        with self._lock:
            self._num_blamed += 1
            if self._num_blamed > MAX_BLAMED:
                raise EndpointError(
                    f"the server has failed on {MAX_BLAMED} images in a row and answered no other, "
                    f"though it says that it is ready: {trouble}"
                )
        return _failed(image, f"the server failed on it {tries} times: {trouble}", "server_failed")


def batches(
    images: Iterator[Loaded], endpoint: Endpoint, *, num_images: int, num_bytes: int
) -> Iterator[list[Loaded]]:
    """Group images for one request each, within the server's limits and `num_bytes`."""
    num_images = min(num_images, endpoint.max_images)
    num_bytes = min(num_bytes, endpoint.max_body_bytes)
    batch: list[Loaded] = []
    size = 0
    for image in images:
        more = len(image.data) + BYTES_PER_PART
        if batch and (len(batch) == num_images or size + more > num_bytes):
            yield batch
            batch, size = [], 0
        batch.append(image)
        size += more
    if batch:
        yield batch


def _multipart(images: Sequence[bytes]) -> tuple[bytes, str]:
    # Answers come by position, so the server need not know the names.
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    pieces = [piece for image in images for piece in (head, image, b"\r\n")]
    body = b"".join((*pieces, f"--{boundary}--\r\n".encode()))
    return body, f"multipart/form-data; boundary={boundary}"


def _results(reply: Any, expected: int) -> list[dict[str, Any]]:
    results = reply.get("results") if isinstance(reply, dict) else None
    if not isinstance(results, list) or len(results) != expected:
        raise EndpointError(
            f"the endpoint did not answer with {expected} results but with {str(reply)[:200]}"
        )
    return results


def _facts(reply: Any) -> dict[str, Any]:
    names = ("model", "version", "engine", "label_revision")
    return {name: reply[name] for name in names if isinstance(reply, dict) and name in reply}


def _merge(
    answer: Answer, result: Mapping[str, Any], facts: dict[str, Any], elapsed: float
) -> Answer:
    """Add what one call said of an image to what is known of it."""
    milliseconds = (answer.milliseconds or 0.0) + elapsed
    if "error" in result:
        failure = Failure(str(result["error"]), str(result.get("code", "")))
        return replace(Answer(answer.item, **facts), milliseconds=milliseconds, failure=failure)
    if answer.version is not None and answer.version != facts.get("version"):
        raise Trouble(
            f"the label came from version {answer.version} and the embedding from version "
            f"{facts.get('version')}: the model is being replaced"
        )
    if "embedding" in result:
        facts = {"embedding": result["embedding"], **facts}
    if "label" in result:
        scores = tuple((each["label"], each["probability"]) for each in result.get("scores", ()))
        facts = {
            "label": result["label"],
            "confidence": result["confidence"],
            "scores": scores,
            **facts,
        }
    return replace(answer, milliseconds=milliseconds, **facts)


def _failed(image: Loaded, error: str, code: str) -> Answer:
    return Answer(image.item, failure=Failure(error, code))
