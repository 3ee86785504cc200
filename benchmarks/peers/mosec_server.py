"""Mosec: a server in Rust before workers in Python.

`same`: a worker per core that takes the raw body. `own`: the layout of its ResNet example, four
workers that decode before two that infer batches of 16.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mosec import Server, Worker

from benchmarks.peers.scoring import (
    BATCH,
    Answer,
    OpenVinoScorer,
    TorchScorer,
    parse_options,
    read_options,
)


class Same(Worker):
    """Bytes to an answer in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = OpenVinoScorer(read_options())

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Answer:
        return self.scorer.score(data)


class Preprocess(Worker):
    """Bytes to pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = TorchScorer(read_options())

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Any:
        return self.scorer.prepare(data).numpy()


class Inference(Worker):
    """A batch of pixels to answers."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer = TorchScorer(read_options())

    def forward(self, data: Sequence[Any]) -> list[Answer]:
        import torch

        return self.scorer.infer([torch.from_numpy(pixels.copy()) for pixels in data])


def main() -> None:
    """Serve. Mosec reads the rest of the command line itself."""
    options = parse_options()
    sys.argv = [sys.argv[0], "--port", str(options.port), "--path", f"{options.folder}/ipc"]
    server = Server()
    if options.mode == "own":
        server.append_worker(Preprocess, num=4)
        server.append_worker(Inference, num=2, max_batch_size=BATCH)
    else:
        server.append_worker(Same, num=options.cores)
    server.run()


if __name__ == "__main__":
    main()
