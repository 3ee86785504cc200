"""`python -m benchmarks.training.trainer REQUEST ANSWER`: train in one way, in this process.

The request is a file of JSON, and so is the answer.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """What to train on, how."""

    module: str  # below `ways`
    uri: str  # of the set
    backbone: str
    side: int
    batch_size: int  # over all workers
    epochs: int
    workers: int  # of Ray Train
    options: dict[str, Any] = field(default_factory=dict)

    def dump(self) -> str:
        """Return the request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Request:
        """Read a request from JSON."""
        return cls(**json.loads(text))


def main() -> int:
    """Answer the request in the file named first, in the one named second."""
    request, answer = Request.load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    way = importlib.import_module(f"benchmarks.training.ways.{request.module}")
    found: dict[str, Any] = way.run(request)
    counted = found["epochs"][1:] or found["epochs"]
    answer.write_text(json.dumps({**found, "per_second": statistics.median(counted)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
