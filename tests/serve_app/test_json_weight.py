"""What JSON is said to take in memory, beside what it takes."""

from __future__ import annotations

import os
import subprocess
import sys

import orjson
import pytest

from serve_app.oip.infer_json import json_weight


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of a process")
def test_json_takes_no_more_than_it_weighs() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.serve_app.json_memory"],
        env=dict(os.environ),
        capture_output=True,
        check=True,
        timeout=100,
    )
    told: dict[str, list[int]] = orjson.loads(ran.stdout)
    assert len(told) == 10
    shares = {kind: round(took / weight, 2) for kind, (weight, took) in told.items()}
    assert max(shares.values()) < 1.15, shares
    assert min(shares.values()) > 0.4, shares


def test_only_the_json_of_a_body_is_taken_apart() -> None:
    body = b'{"a":[1,2]}' + b",,,,[[["
    assert json_weight(body, 11) == len(body) + 3 * 11 + 52 + 2 * 14 + 72 + 2 * 88
    assert json_weight(body, 0) == len(body)
