"""What `make serve` and `make demo` are going to serve, and at which address."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from jobs.local_serving import as_it_is, check_port, local_config, with_models
from models.errors import ConfigError, NotFoundError
from serve_app.config import ServeOptions, parse_options
from serve_app.model import open_served
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
    both = as_it_is(with_models(config, ["caps", "cells"]))
    catalog, caps, cells = both["applications"]
    assert catalog["route_prefix"] == "/"
    assert (caps["name"], caps["route_prefix"]) == ("caps", "/v2/models/caps")
    assert caps["args"]["bundle"] == f"{tmp_path}/caps/2"
    assert cells["args"]["bundle"] == f"{tmp_path}/cells/1"
    assert with_models(config, [])["applications"][1]["name"] == "cells"  # published last


def test_a_version_may_be_named_and_stands_beside_another(tmp_path: Path) -> None:
    for _ in range(3):
        tiny_bundle(tmp_path, name="caps")
    config = config_with(f"{tmp_path}/elpv/1")
    _, new, old = with_models(config, ["caps", "caps@1"])["applications"]
    assert (new["name"], new["route_prefix"]) == ("caps", "/v2/models/caps")
    assert new["args"]["bundle"] == f"{tmp_path}/caps/3"
    assert (old["name"], old["route_prefix"]) == ("caps-1", "/v2/models/caps/versions/1")
    assert old["args"]["bundle"] == f"{tmp_path}/caps/1"
    _, only = with_models(config, ["caps@2"])["applications"]
    assert (only["route_prefix"], only["args"]["bundle"]) == (
        "/v2/models/caps",
        f"{tmp_path}/caps/2",
    )
    with pytest.raises(ConfigError, match="as in caps@3"):
        with_models(config, ["caps@new"])


def test_a_serve_file_is_served_as_it_is_with_the_local_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bundle(tmp_path, name="caps")
    tiny_bundle(tmp_path, name="caps")
    config = config_with(f"{tmp_path}/caps/1")
    monkeypatch.chdir(tmp_path)
    assert as_it_is(config)["applications"][1]["args"] == {"bundle": f"{tmp_path}/caps/1"}
    (tmp_path / ".sightline").mkdir()
    (tmp_path / ".sightline" / "keys").touch()
    for application in as_it_is(config)["applications"]:
        assert application["args"]["keys_file"] == f"{tmp_path}/.sightline/keys"


def test_a_model_whose_labels_may_change_gets_the_label_store(tmp_path: Path) -> None:
    tiny_bundle(tmp_path, name="caps", kind="dynamic")
    config = as_it_is(config_with(f"{tmp_path}/caps/1"))
    assert config["applications"][1]["args"]["label_store"].endswith("/.sightline/labels")


@pytest.mark.parametrize(("kind", "has_store"), [("generic", False), ("dynamic", True)])
def test_the_serve_file_of_this_machine_takes_models_with_and_without_a_label_map(
    tmp_path: Path, kind: str, has_store: bool
) -> None:
    """`make serve` once gave every model the label store of the demo's, which most refuse."""
    tiny_bundle(tmp_path, name="caps", kind=kind)
    config = local_config(ROOT / "configs/serve/local.yaml")
    _, template = config["applications"]
    assert template["args"]["label_store"]
    template["args"]["bundle"] = f"{tmp_path}/elpv/1"
    _, caps = as_it_is(with_models(config, ["caps"]))["applications"]
    assert ("label_store" in caps["args"]) is has_store
    open_served(parse_options(ServeOptions, caps["args"], "caps")).close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("applications: [", "cannot be read"),
        ("", "no list of `applications`"),
        ("- 1", "no list of `applications`"),
        ("applications: 5", "no list of `applications`"),
        ("applications: [{name: caps}]", "no list of `applications`"),
    ],
)
def test_a_serve_file_that_is_none_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"serve.yaml.*{told}"):
        local_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        local_config(tmp_path)


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    config = config_with(f"{tmp_path}/elpv/1")
    with pytest.raises(NotFoundError, match="make demo"):
        with_models(config, [])
    with pytest.raises(NotFoundError, match="'caps'"):
        as_it_is(with_models(config, ["caps"]))
    with pytest.raises(ConfigError, match="has 2 models"):
        with_models(config_with("a/b/1", "a/c/1"), ["c"])


def test_a_port_that_is_taken_is_named_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot serve on 127.0.0.1:{port}"):
            check_port({"http_options": {"port": port}})
        with pytest.raises(ConfigError, match=r"set grpc_options\.port in the serve file"):
            check_port({"http_options": {"port": 0}, "grpc_options": {"port": port}})
    check_port({"http_options": {"port": port}, "grpc_options": {"port": 0}})
