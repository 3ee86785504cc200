"""MLServer.

`same`: a worker process per core. `own`: one worker, which is the default, and adaptive batching.
It takes no raw bodies: images travel as base64 in V2 JSON, in both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.scoring import (
    BATCH,
    BATCH_WAIT_SECONDS,
    Answer,
    OpenVinoScorer,
    TorchScorer,
    parse_options,
    read_options,
)

RUNTIME = "benchmarks.peers.mlserver_server.{}"
NAME = "sightline"


class Same(MLModel):
    """Images one at a time."""

    async def load(self) -> bool:
        self.scorer = OpenVinoScorer(read_options())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = Base64Codec.decode_input(payload.inputs[0])
        return response(self.name, [self.scorer.score(image) for image in images])


class Own(MLModel):
    """As many images as MLServer has put together."""

    async def load(self) -> bool:
        self.scorer = TorchScorer(read_options())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = Base64Codec.decode_input(payload.inputs[0])
        return response(self.name, self.scorer.infer([self.scorer.prepare(x) for x in images]))


def response(name: str, answers: Sequence[Answer]) -> InferenceResponse:
    """Return the V2 outputs of N answers."""
    import numpy as np

    probabilities = np.array([each["probabilities"] for each in answers], dtype=np.float32)
    labels = [each["label"] for each in answers]
    return InferenceResponse(
        model_name=name,
        outputs=[
            NumpyCodec.encode_output("probabilities", probabilities),
            StringCodec.encode_output("label", labels),
        ],
    )


def main() -> None:
    """Serve."""
    options = parse_options()
    http, grpc, metrics = options.ports[:3]
    is_own = options.mode == "own"
    settings = {
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "metrics_dir": options.folder,
        "debug": False,
        **({} if is_own else {"parallel_workers": options.cores}),
    }
    model = {
        "name": NAME,
        "implementation": RUNTIME.format(options.mode.capitalize()),
        **({"max_batch_size": BATCH, "max_batch_time": BATCH_WAIT_SECONDS} if is_own else {}),
    }
    folder = Path(options.folder)
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = Path(sys.executable).with_name("mlserver")
    os.execv(command, [str(command), "start", str(folder)])


if __name__ == "__main__":
    main()
