"""Our own errors are found inside Ray's."""

from __future__ import annotations

import pytest

from jobs.causes import find_cause
from models.errors import DataError


def test_an_error_is_found_behind_causes_and_contexts() -> None:
    try:
        try:
            raise DataError("no images")
        except DataError as error:
            raise RuntimeError("task failed") from error
    except RuntimeError as outer:
        found = find_cause(outer)
    assert str(found) == "no images"


def test_errors_that_are_not_ours_have_no_cause() -> None:
    assert find_cause(ValueError("a defect")) is None


def test_errors_that_name_each_other_end_the_search() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_cause(first) is None


@pytest.mark.slow
def test_an_error_of_a_task_is_found_as_it_was_raised() -> None:
    """Ray raises a copy that is of both classes, and refuses it as an argument of another task."""
    from ray.exceptions import RayTaskError

    raised = RayTaskError("read", "a long traceback", DataError("no images")).as_instanceof_cause()
    assert isinstance(raised, DataError)
    found = find_cause(raised)
    assert type(found) is DataError
    assert str(found) == "no images"


@pytest.mark.slow
def test_an_error_is_found_among_the_workers_of_ray_train() -> None:
    from ray.train import WorkerGroupError

    wrapped = WorkerGroupError(
        "workers failed", {0: RuntimeError("peer is gone"), 1: DataError("no images")}
    )
    assert str(find_cause(wrapped)) == "no images"
