"""`python -m jobs.labels`, as a person at a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.labels import main
from tests.bundles import tiny_bundle


class Shell:
    """Runs commands on one model, and gives what they print."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._stores = (f"--model-store={folder}/m", f"--label-store={folder}/l")
        self._capsys = capsys

    def run(self, command: str, *arguments: str) -> tuple[dict[str, Any], str]:
        """Return the JSON line and what was shown."""
        assert main([command, "caps", *arguments, *self._stores]) == 0
        out, shown = self._capsys.readouterr()
        line: dict[str, Any] = json.loads(out)
        return line, shown

    def refused(self, command: str, *arguments: str) -> str:
        """Return the message of a command that has to fail."""
        with pytest.raises(SystemExit) as ended:
            main([command, "caps", *arguments, *self._stores])
        assert ended.value.code == 1
        return " ".join(self._capsys.readouterr().err.split())


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell with a model of three classes."""
    classes = ("good", "dented", "scratched")
    tiny_bundle(tmp_path / "m", name="caps", kind="dynamic", classes=classes)
    return Shell(tmp_path, capsys)


def names(shell: Shell) -> dict[str, str]:
    """Return the status of every label by its name."""
    labels = shell.run("show")[0]["map"]["labels"]
    return {label["name"]: label["status"] for label in labels}


def test_two_labels_are_merged_one_is_renamed_and_all_is_rolled_back(shell: Shell) -> None:
    line, shown = shell.run("merge", "scratched", "--into", "dented", "--reason", "one bin")
    assert line == {"model": "caps", "revision": 1}
    assert "outputs [dented] -> [dented, scratched]" in shown
    shell.run("rename", "dented", "defective", "--keep-alias")
    assert names(shell) == {"good": "active", "defective": "active", "scratched": "retired"}
    shell.run("split-back", "scratched")
    shell.run("hide", "scratched")
    shell.run("restore", "scratched")
    shell.run("alias", "good", "--add", "ok", "--add", "fine")
    shell.run("set-threshold", "0.6")
    shell.run("set-threshold", "0.9", "--label", "ok")
    line, _ = shell.run("show")
    assert line["revision"] == 8
    assert line["map"]["threshold"] == 0.6
    assert line["map"]["labels"][0]["threshold"] == 0.9
    assert shell.run("rollback", "0")[0]["revision"] == 9
    assert names(shell) == {"good": "active", "dented": "active", "scratched": "active"}
    line, shown = shell.run("history")
    assert line["revisions"] == list(range(9, -1, -1))
    assert "one bin" in shown
    changes = shell.run("diff", "--since", "0", "--to", "1")[0]["changes"]
    assert {"label": "scratched", "field": "status", "before": "active", "after": "retired"} in (
        changes
    )


def test_brackets_in_names_and_reasons_are_shown(shell: Shell) -> None:
    _, shown = shell.run("rename", "good", "type [b]A[/b]", "--reason", "as [red] ones")
    assert "name good -> type [b]A[/b]" in shown
    assert "type [b]A[/b]" in shell.run("show")[1]
    assert "as [red] ones" in shell.run("history")[1]
    _, shown = shell.run("hide", "dented", "--dry-run")
    assert "type [b]A[/b]" in shown  # in the table of what would be


def test_a_dry_run_stores_nothing(shell: Shell) -> None:
    line, shown = shell.run("hide", "good", "--dry-run")
    assert line == {"model": "caps", "revision": 0, "dry_run": True}
    assert "status active -> hidden" in shown
    assert "on 60 validation images, before -> after" in shown
    assert "0.000 -> " in shown  # the share that is unknown
    assert shell.run("show")[0]["revision"] == 0


def test_a_file_holds_edits_or_a_whole_map(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "season.yaml"
    file.write_text("- {op: hide, label: dented}\n- {op: rename, label: good, name: ok}\n")
    assert shell.run("publish", str(file))[0]["revision"] == 1
    assert names(shell) == {"ok": "active", "dented": "hidden", "scratched": "active"}
    whole = shell.run("show", "--revision", "0")[0]["map"]
    file.write_text(json.dumps(whole))
    shell.run("publish", str(file), "--base", "1")
    assert names(shell)["good"] == "active"
    file.write_text("- {op: rename, label: good, name: on}\n")  # a word, not a boolean
    shell.run("publish", str(file))
    assert names(shell)["on"] == "active"
    file.write_text("- {op: hid, label: dented}\n")
    assert "edit 0: " in shell.refused("publish", str(file))
    file.write_text("labels: 5")
    assert "is no label map: fingerprint: Field required" in shell.refused("publish", str(file))
    assert "cannot be read" in shell.refused("publish", str(tmp_path / "none.yaml"))


def test_what_cannot_be_done_is_said_in_a_sentence(shell: Shell) -> None:
    shell.run("hide", "good")
    assert "did you mean 'dented'" in shell.refused("hide", "dentd")
    assert "at revision 1, not at 0" in shell.refused("restore", "good", "--base", "0")
    assert "less than or equal to 1" in shell.refused("set-threshold", "2")
    assert "no such object" in shell.refused("rollback", "7")
    assert "needs an author" in shell.refused("restore", "good", "--author", "")


@pytest.mark.parametrize("kind", ["generic", "embedding"])
def test_a_model_whose_labels_are_fixed_has_no_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tiny_bundle(tmp_path / "m", name="caps", kind=kind)
    assert "has no label map" in Shell(tmp_path, capsys).refused("show")
