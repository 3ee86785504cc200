"""timm's own train script, on the same folder: its reader decodes with Pillow, and it augments as
little as it can be told to.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.training.plan import NO_SCRIPT

if TYPE_CHECKING:
    from benchmarks.training.trainer import Request

# "Train: 1 [   7/8 (100%)]  Loss: 2.3 (2.3)  Time: 0.7s,   44.9/s  (0.7s,   45.2/s)  LR: ..."
LINE = re.compile(r"Train: (\d+) .*\(\s*[\d.]+s,\s*([\d.]+)/s\)")
TAIL = 1_500


def run(request: Request) -> dict[str, Any]:
    """Train. Raises `RuntimeError` with the end of its log."""
    script = request.options.get("script")
    if script is None:
        raise RuntimeError(NO_SCRIPT)
    classes = len([path for path in (Path(request.uri) / "train").iterdir() if path.is_dir()])
    with tempfile.TemporaryDirectory() as out:
        command = [
            *(sys.executable, str(script), "--data-dir", request.uri, "--output", out),
            *("--train-split", "train", "--val-split", "train", "--val-interval", "1000"),
            *("--model", request.backbone, "--num-classes", str(classes)),
            *("--img-size", str(request.side), "--batch-size", str(request.batch_size)),
            *("--epochs", str(request.epochs), "--opt", "adamw", "--lr", "1e-4", "--sched", "none"),
            *("--device", "cpu", "--workers", str(os.cpu_count() or 1), "--channels-last"),
            *("--no-aug", "--smoothing", "0.1", "--log-interval", "1", "--no-prefetcher"),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
    speeds = epoch_speeds(result.stdout + result.stderr)
    if result.returncode or not speeds:
        raise RuntimeError(f"it ended with status {result.returncode}: {result.stderr[-TAIL:]}")
    return {"epochs": speeds}


def epoch_speeds(log: str) -> list[float]:
    """Return the average images per second that the last line of each epoch tells."""
    found = {int(epoch): float(speed) for epoch, speed in LINE.findall(log)}
    return [found[epoch] for epoch in sorted(found)]
