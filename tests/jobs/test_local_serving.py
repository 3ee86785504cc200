"""The address that `make serve` and `make demo` are going to answer at."""

from __future__ import annotations

import socket

import pytest

from jobs.local_serving import check_port
from models.errors import ConfigError


def test_a_port_that_is_taken_is_named_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot serve on 127.0.0.1:{port}"):
            check_port({"http_options": {"port": port}})
    check_port({"http_options": {"port": port}})
