"""LitServe.

`same`: a worker and an API server per core, the fast queue, raw bodies (FastAPI hands bytes over
for any content type but JSON). `own`: the guide "Speed up serving": base64 in JSON, batches.
"""

# No postponed annotations: LitServe reads those of decode_request as types. `Request` means that it
# parses the JSON itself; the value is then a dict.
import base64
from collections.abc import Sequence
from typing import Annotated, Any

import litserve
from fastapi import Body, Request

from benchmarks.peers.scoring import (
    BATCH,
    BATCH_WAIT_SECONDS,
    Answer,
    OpenVinoScorer,
    TorchScorer,
    parse_options,
    read_options,
)

RawBody = Annotated[bytes, Body()]


class Same(litserve.LitAPI):
    """Bytes to an answer in one step."""

    def setup(self, device: str) -> None:
        self.scorer = OpenVinoScorer(read_options())

    def decode_request(self, request: RawBody) -> bytes:
        return request

    def predict(self, x: bytes) -> Answer:
        return self.scorer.score(x)

    def encode_response(self, output: Answer) -> Answer:
        return output


class Own(litserve.LitAPI):
    """Decode, batch, predict."""

    def setup(self, device: str) -> None:
        self.scorer = TorchScorer(read_options())

    def decode_request(self, request: Request) -> Any:
        return self.scorer.prepare(base64.b64decode(request["image_data"]))

    def batch(self, inputs: Sequence[Any]) -> Sequence[Any]:
        return inputs

    def predict(self, x: Sequence[Any]) -> list[Answer]:
        return self.scorer.infer(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Answer:
        return output


def main() -> None:
    """Serve."""
    options = parse_options()
    if options.mode == "own":
        api = Own(max_batch_size=BATCH, batch_timeout=BATCH_WAIT_SECONDS)
        server = litserve.LitServer(api, accelerator="cpu")
        server.run(port=options.port, generate_client_file=False)
    else:
        server = litserve.LitServer(
            Same(), accelerator="cpu", workers_per_device=options.cores, fast_queue=True
        )
        server.run(port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
