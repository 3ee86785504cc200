"""With which status the commands end that refuse what they are given, as their pages say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.data.audit.__main__ import main as audit
from jobs.data.pack import main as pack
from jobs.score.__main__ import main as score

Main = Callable[[list[str]], int]


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (score, ["a", "b.csv", "--nope"]),
        (score, ["a", "b.csv", "--bundle", "m/1", "--workers", "0"]),
        (pack, ["a", "b", "--nope"]),
        (pack, ["a", "b", "--max-side", "wide"]),
        (audit, ["a", "--nope"]),
        (audit, ["a", "--fail-on", "info"]),
    ],
)
def test_an_option_or_a_value_that_there_is_not_is_status_2(
    main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(main, arguments) == 2
    assert "usage: python -m jobs." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (score, ["a", "b.csv", "--bundle", "m/1", "--url", "http://h/v2/models/m"]),
        (score, ["a", "b.txt", "--bundle", "m/1"]),
        (pack, ["a", "b", "sorce=folder"]),
        (audit, ["a", "few_image=3"]),
    ],
)
def test_what_makes_no_sense_is_status_1(
    main: Main,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(main, arguments) == 1
    assert capsys.readouterr().err.startswith("ConfigError: ")


def ended(main: Main, arguments: list[str]) -> object:
    """Return the status with which a command ends that refuses."""
    with pytest.raises(SystemExit) as error:
        main(arguments)
    return error.value.code
