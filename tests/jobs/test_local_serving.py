"""What `make serve` and `make demo` are going to serve, and at which address."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from jobs.local_serving import check_port, local_config, with_models, with_newest_bundles
from models.errors import ConfigError, NotFoundError
from tests.bundles import tiny_bundle

ROOT = Path(__file__).parent.parent.parent


def config_with(*bundles: str) -> dict[str, Any]:
    """Return a serve file like the local one, with a model for each bundle."""
    catalog, model = local_config(ROOT / "configs/serve/local.yaml")["applications"]
    return {"applications": [catalog, *({**model, "args": {"bundle": each}} for each in bundles)]}


def test_models_are_served_at_their_newest_version_each_at_its_own_path(tmp_path: Path) -> None:
    for name in ("caps", "caps", "cells"):
        tiny_bundle(tmp_path, name=name)
    config = config_with(f"{tmp_path}/elpv/1")
    both = with_newest_bundles(with_models(config, ["caps", "cells"]))
    catalog, caps, cells = both["applications"]
    assert catalog["route_prefix"] == "/"
    assert (caps["name"], caps["route_prefix"]) == ("caps", "/v2/models/caps")
    assert caps["args"]["bundle"] == f"{tmp_path}/caps/2"
    assert cells["args"]["bundle"] == f"{tmp_path}/cells/1"
    assert with_models(config, [])["applications"][1]["name"] == "cells"  # published last


def test_a_model_whose_labels_may_change_gets_the_label_store(tmp_path: Path) -> None:
    tiny_bundle(tmp_path, name="caps", kind="dynamic")
    config = with_newest_bundles(config_with(f"{tmp_path}/caps/1"))
    assert config["applications"][1]["args"]["label_store"].endswith("/.sightline/labels")


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    config = config_with(f"{tmp_path}/elpv/1")
    with pytest.raises(NotFoundError, match="make demo"):
        with_models(config, [])
    with pytest.raises(NotFoundError, match="'caps'"):
        with_newest_bundles(with_models(config, ["caps"]))
    with pytest.raises(ConfigError, match="has 2 models"):
        with_models(config_with("a/b/1", "a/c/1"), ["c"])


def test_a_port_that_is_taken_is_named_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot serve on 127.0.0.1:{port}"):
            check_port({"http_options": {"port": port}})
    check_port({"http_options": {"port": port}})
