"""Who may call: keys, their scopes, and how they change while a server runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.errors import ConfigError
from serve_app import keys as module
from serve_app.errors import RequestError
from serve_app.keys import ADMIN, INFER, Keys, main, new_key, open_keys, parse_keys

LINE, LINE_ROW = new_key("line-4", [INFER])
OFFICE, OFFICE_ROW = new_key("office", [ADMIN])


def bearer(key: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"authorization": f"Bearer {key}"}


def refusal(keys: Keys, headers: dict[str, str], scope: str) -> tuple[int, str]:
    """Return how a call is refused."""
    with pytest.raises(RequestError) as caught:
        keys.require(headers, scope)
    return caught.value.status, caught.value.code


def test_without_any_key_scoring_is_open_and_admin_is_closed() -> None:
    keys = Keys()
    assert keys.require({}, INFER) == ""
    assert keys.require(bearer("left over"), INFER) == ""
    assert refusal(keys, {}, ADMIN) == (403, "admin_closed")
    assert refusal(keys, bearer(LINE), ADMIN) == (403, "admin_closed")


def test_a_key_opens_its_scopes_and_admin_opens_all() -> None:
    keys = Keys(f"{LINE_ROW}\n{OFFICE_ROW}")
    assert keys.require(bearer(LINE), INFER) == "line-4"
    assert keys.require({"x-api-key": LINE}, INFER) == "line-4"
    assert keys.require({"authorization": f"bearer  {OFFICE} "}, ADMIN) == "office"
    assert keys.require(bearer(OFFICE), INFER) == "office"
    assert refusal(keys, bearer(LINE), ADMIN) == (403, "forbidden")
    for headers in ({}, bearer("wrong"), bearer(""), {"authorization": f"Basic {LINE}"}):
        for scope in (INFER, ADMIN):
            assert refusal(keys, headers, scope) == (401, "unauthenticated")
    with pytest.raises(RequestError) as caught:
        keys.require({}, INFER)
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


def test_an_admin_key_alone_leaves_scoring_open() -> None:
    keys = Keys(OFFICE_ROW)
    assert keys.require({}, INFER) == ""
    assert refusal(keys, {}, ADMIN) == (401, "unauthenticated")


def test_the_key_itself_is_kept_nowhere() -> None:
    keys = Keys(LINE_ROW)
    assert LINE not in LINE_ROW
    assert LINE not in repr(vars(keys))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keys file that is looked at with every call."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.0)
    path = tmp_path / "keys"
    path.write_text(f"# who may call\n\n{LINE_ROW}  # the camera\n")
    return path


def replace(file: Path, text: str) -> None:
    """Change a file as a mounted secret changes: another file in its place."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)


def test_keys_come_and_go_without_a_restart(file: Path) -> None:
    keys = Keys(file=file)
    assert keys.require(bearer(LINE), INFER) == "line-4"
    second, row = new_key("line-4b", [INFER])
    replace(file, f"{LINE_ROW}\n{row}\n")
    assert keys.require(bearer(second), INFER) == "line-4b"
    assert keys.require(bearer(LINE), INFER) == "line-4"
    replace(file, f"{row}\n")
    assert refusal(keys, bearer(LINE), INFER) == (401, "unauthenticated")


def test_an_emptied_file_does_not_open_the_server(file: Path) -> None:
    keys = Keys(file=file)
    replace(file, "")
    assert refusal(keys, {}, INFER) == (401, "unauthenticated")
    assert refusal(keys, bearer(LINE), INFER) == (401, "unauthenticated")


@pytest.mark.parametrize("text", ["line-4 infer", "\x80garbage", "a b c d", f"{LINE_ROW}0"])
def test_a_broken_or_missing_file_leaves_the_keys_as_they_were(
    file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(file=file)
    file.write_bytes(text.encode("latin-1"))
    assert keys.require(bearer(LINE), INFER) == "line-4"
    file.unlink()
    assert keys.require(bearer(LINE), INFER) == "line-4"
    assert LINE not in caplog.text
    assert "keys stay as they were" in caplog.text


def test_the_environment_and_a_file_count_together(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(module.VARIABLE, f" {OFFICE_ROW} ; ")
    keys = open_keys(str(file))
    assert keys.require(bearer(OFFICE), ADMIN) == "office"
    assert keys.require(bearer(LINE), INFER) == "line-4"
    assert open_keys(None).require({}, INFER) == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("line-4 infer", "line 1: expected `NAME SCOPES SHA256`"),
        (f"{LINE_ROW}\nline/5 infer {'a' * 64}", "line 2: expected"),
        (f"line-4 infer {'a' * 63}", "line 1: expected"),
        (f"line-4 infer,root {'a' * 64}", "unknown scope 'root'; expected infer or admin"),
    ],
)
def test_keys_that_cannot_be_read_are_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("`", ".")):
        parse_keys(text, "SIGHTLINE_KEYS")


def test_a_file_that_is_not_there_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-keys cannot be read"):
        open_keys(str(tmp_path / "no-keys"))


def test_the_command_makes_a_key_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["line-4", "--scope", "infer", "--scope", "admin"]) == 0
    out, err = capsys.readouterr()
    key = err.split()[-1]
    assert Keys(out).require(bearer(key), ADMIN) == "line-4"
    with pytest.raises(SystemExit):
        main(["line 4"])


@pytest.mark.parametrize("text", ["", "# to be filled\n"])
def test_a_server_that_starts_with_a_file_without_a_key_is_closed(file: Path, text: str) -> None:
    """A replica that started after a failed rotation once let everybody score."""
    replace(file, text)
    keys = Keys(file=file)
    assert refusal(keys, {}, INFER) == (401, "unauthenticated")
    replace(file, f"{LINE_ROW}\n")
    keys._looked_at = float("-inf")
    assert keys.require(bearer(LINE), INFER) == "line-4"
    assert Keys().require({}, INFER) == "", "without a file it is open"
