"""What TorchServe's workers run; a file of its own because TorchServe looks for handlers in the
model's archive, which holds one line that imports this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.image_classifier import ImageClassifier

from benchmarks.peers.scoring import Answer, OpenVinoScorer, TorchScorer, read_options

Rows = Sequence[Mapping[str, Any]]


def files(rows: Rows) -> list[bytes]:
    """Return the bodies of the requests of a batch."""
    return [bytes(row.get("data") or row.get("body") or b"") for row in rows]


class Same(BaseHandler):
    """Bytes to an answer in one step."""

    def initialize(self, context: Any) -> None:
        self.scorer = OpenVinoScorer(read_options())
        self.initialized = True

    def handle(self, data: Rows, context: Any) -> list[Answer]:
        return [self.scorer.score(image) for image in files(data)]


class Own(ImageClassifier):
    """The class behind `image_classifier`, with another network and its transform."""

    def initialize(self, context: Any) -> None:
        self.scorer = TorchScorer(read_options())
        self.context, self.manifest = context, context.manifest
        self.initialized = True

    def preprocess(self, data: Rows) -> Any:
        return [self.scorer.prepare(image) for image in files(data)]

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return self.scorer.infer(data)

    def postprocess(self, data: Any) -> Any:
        return data
