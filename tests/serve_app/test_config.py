"""What a serve file may say, and what it is told when it says something else."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import ConfigError
from serve_app.config import CatalogOptions, ServeOptions, parse_options


def refusal(args: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_options(ServeOptions, args, "elpv")
    return str(caught.value)


def test_a_bundle_is_all_that_is_needed() -> None:
    options = parse_options(ServeOptions, {"bundle": "store/elpv/1"}, "elpv")
    assert options.engine_options.device == "cpu"
    assert options.engine_options.threads == 1


def test_a_missing_bundle_is_named() -> None:
    assert refusal({}) == "args of elpv: 'bundle' is required and missing"


def test_an_unknown_setting_is_answered_with_its_value_and_the_nearest_name() -> None:
    message = refusal({"bundle": "b", "replica": 3})
    assert message == "args of elpv: unknown setting 'replica' = 3; did you mean 'replicas'?"


def test_an_unknown_setting_inside_a_group_is_compared_with_that_group() -> None:
    message = refusal({"bundle": "b", "limits": {"max_pixel": 5}})
    assert "'limits.max_pixel' = 5; did you mean 'max_pixels'?" in message


def test_a_name_like_no_other_is_answered_with_all_names() -> None:
    assert "known are max_body_bytes, max_image_bytes" in refusal(
        {"bundle": "b", "limits": {"zzz": 5}}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicas", 0),
        ("replicas", "many"),
        ("precision", "int3"),
        ("device", "tpu"),
        ("max_requests", 0),
        ("engines", []),
        ("batch_wait_ms", -0.5),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(name: str, value: object) -> None:
    assert f"'{name}' = {value!r}" in refusal({"bundle": "b", name: value})


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    message = refusal({"bundle": "b", "engines": ["openvine"]})
    assert "unknown engine 'openvine'; expected some of openvino, torch" in message


def test_replicas_and_autoscaling_contradict_each_other() -> None:
    message = refusal({"bundle": "b", "replicas": 2, "autoscaling": {"max_replicas": 4}})
    assert message == "args of elpv: give `replicas` or `autoscaling`, not both"


def test_every_wrong_setting_is_named_at_once() -> None:
    message = refusal({"bundle": "b", "replicas": 0, "num_cpu": 1})
    assert "'replicas' = 0" in message
    assert "'num_cpu' = 1; did you mean 'num_cpus'?" in message


def test_a_gpu_replica_runs_on_cuda_unless_told_otherwise() -> None:
    assert ServeOptions(bundle="b", num_gpus=0.5).engine_options.device == "cuda"
    assert ServeOptions(bundle="b", num_gpus=1, device="cpu").engine_options.device == "cpu"


@pytest.mark.parametrize(("num_cpus", "threads"), [(0, 1), (0.5, 1), (1, 1), (1.5, 2), (4, 4)])
def test_a_replica_uses_as_many_threads_as_it_reserves_cpus(num_cpus: float, threads: int) -> None:
    assert ServeOptions(bundle="b", num_cpus=num_cpus).engine_options.threads == threads


def test_the_catalog_takes_no_settings() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'models'"):
        parse_options(CatalogOptions, {"models": []}, "catalog")
