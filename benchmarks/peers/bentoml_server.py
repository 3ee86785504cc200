"""BentoML.

`same`: raw bodies, one worker with a stream for each core and one thread more, as Sightline: 87
images/s where a worker per core answered 55, since one of two takes most connections. `own`: Pillow
images in multipart and adaptive batching with its defaults, as in BentoML's guide; one worker,
which is the default.
"""

# No postponed annotations: BentoML reads those of API methods as types.
import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import PIL.Image

from benchmarks.peers.scoring import (
    Answer,
    OpenVinoScorer,
    TorchScorer,
    parse_options,
    read_options,
)

SERVICE = "benchmarks.peers.bentoml_server:{}"
CORES = len(os.sched_getaffinity(0))  # asked before there are options


@bentoml.service(workers=1, threads=CORES + 1, logging={"access": {"enabled": False}})
class Same:
    """Bytes to an answer in one step."""

    def __init__(self) -> None:
        self.scorer = OpenVinoScorer(read_options(), CORES)

    @bentoml.api
    def classify(self, data: bytes, /) -> dict[str, Any]:
        return self.scorer.score(data)


@bentoml.service
class Own:
    """Decoded images, several at a time, to answers."""

    def __init__(self) -> None:
        self.scorer = TorchScorer(read_options())

    @bentoml.api(batchable=True)
    def classify(self, images: list[PIL.Image.Image]) -> list[dict[str, Any]]:
        answers: list[Answer] = self.scorer.infer([self.scorer.transform(each) for each in images])
        return answers


def main() -> None:
    """Serve."""
    options = parse_options()
    service = SERVICE.format(options.mode.capitalize())
    command = Path(sys.executable).with_name("bentoml")
    os.environ.update({"BENTOML_HOME": options.folder, "BENTOML_DO_NOT_TRACK": "true"})
    os.execv(command, [str(command), "serve", service, "--port", str(options.port)])


if __name__ == "__main__":
    main()
