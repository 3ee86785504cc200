"""Memory of a long run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.data.images import jpeg
from tests.jobs.score.running import PROGRAM
from tests.jobs.score.serving import ROOT, Process

pytestmark = pytest.mark.slow  # two runs, one of 20,000 images


def test_memory_does_not_grow_with_the_number_of_images(bundle: str, tmp_path: Path) -> None:
    """20,000 images take no more than 2,000: the figure is printed."""
    first = tmp_path / "one.jpg"
    first.write_bytes(jpeg(1, size=16))
    for n in range(20_000):
        path = tmp_path / "many" / f"{n // 1000:02}" / f"{n:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)
    server = Process(bundle)
    server.start()
    peaks: dict[str, float] = {}
    try:
        for name, source in (("2k", tmp_path / "few"), ("20k", tmp_path / "many")):
            if name == "2k":
                source.mkdir()
                for n in range(2000):
                    os.link(first, source / f"{n:05}.jpg")
            program = PROGRAM.replace("ROWS_PER_PART = 16", "ROWS_PER_PART = 2000").replace(
                "sys.exit(main())",
                # A group of the output is held, of up to 50,000 rows: here as few as in a part.
                "jobs.score.output.ROWS_PER_GROUP = 2000\n"
                "main(); from tests.peak import peak; print(peak())",
            )
            command = [sys.executable, "-c", program, str(source), "--url", server.url]
            ended: Any = subprocess.run(
                [*command, "--output", str(tmp_path / f"{name}.parquet"), "--batch", "8"],
                cwd=ROOT, capture_output=True, text=True, check=True,
            )  # fmt: skip
            line, peak = ended.stdout.splitlines()[-2:]
            print(name, line, peak)
            peaks[name] = float(peak)
    finally:
        server.kill()
    print(f"peak memory: {peaks['2k']:.0f} MiB, {peaks['20k']:.0f} MiB")
    assert peaks["20k"] < peaks["2k"] * 1.15
