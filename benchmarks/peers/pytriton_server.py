"""PyTriton: NVIDIA's Triton server with Python functions behind it.

`same`: an instance per core. `own`: its example for an image classifier, one instance with the
dynamic batcher. Both take the raw body (a binary request with a header length of 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.scoring import (
    Answer,
    OpenVinoScorer,
    Options,
    TorchScorer,
    parse_options,
)

NAME = "sightline"
MAX_BATCH = 32  # of the example
QUEUE_DELAY_MICROSECONDS = 5000


def same(options: Options) -> Callable[..., Any]:
    """Return the function of one instance."""
    scorer = OpenVinoScorer(options)
    return _function(lambda files: [scorer.score(data) for data in files])


def own(options: Options) -> Callable[..., Any]:
    """Return the function of the only instance."""
    scorer = TorchScorer(options)
    return _function(lambda files: scorer.infer([scorer.prepare(data) for data in files]))


def _function(score: Callable[[Sequence[bytes]], list[Answer]]) -> Callable[..., Any]:
    @batch
    def infer(image: np.ndarray[Any, Any]) -> dict[str, Any]:
        answers = score([row[0] for row in image])
        probabilities = [each["probabilities"] for each in answers]
        return {"probabilities": np.array(probabilities, dtype=np.float32)}

    return infer


def main() -> None:
    """Serve."""
    options = parse_options()
    http, grpc, metrics = options.ports[:3]
    if options.mode == "own":
        functions = [own(options)]
        batcher = DynamicBatcher(max_queue_delay_microseconds=QUEUE_DELAY_MICROSECONDS)
        config = ModelConfig(max_batch_size=MAX_BATCH, batcher=batcher)
    else:
        functions = [same(options) for _ in range(options.cores)]
        config = ModelConfig(max_batch_size=1)
    settings = TritonConfig(http_port=http, grpc_port=grpc, metrics_port=metrics)
    with Triton(config=settings) as triton:
        triton.bind(
            model_name=NAME,
            infer_func=functions,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(-1,))],
            config=config,
        )
        triton.serve()


if __name__ == "__main__":
    main()
