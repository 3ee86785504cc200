"""Sets whose names have characters beyond the first 65,536, or bytes that are no Unicode, through
the jobs that read them.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from cluster.session import Session
from jobs.config import quoted
from jobs.data.audit.__main__ import load_job
from jobs.data.audit.__main__ import main as audit
from jobs.data.config import DataConfig
from jobs.data.pack import main as pack
from jobs.data.packed import list_packed
from jobs.data.tar_files import find_shards
from jobs.data.webdataset import ShardReader
from jobs.evaluate.__main__ import load_job as load_evaluation
from jobs.score.__main__ import main as score
from jobs.yaml12 import Loader
from tests.bundles import tiny_bundle
from tests.jobs.data.audit.planted import encoded, picture
from tests.jobs.data.images import jpeg, write

Run = Callable[..., dict[str, Any]]
SET, GOOD = "caps 🧴 'a\"b", "gut 👍"


@pytest.mark.parametrize(
    "text", ["plain", SET, "a: b #c", "\\u0041", "new\nline\t\x7f", "", "ü日\ufeff", "odd\udcff"]
)
def test_a_quoted_text_is_read_as_it_is(text: str) -> None:
    assert yaml.load(quoted(text), Loader=Loader) == text


def test_a_source_with_an_emoji_is_taken_as_it_is_written() -> None:
    assert load_job(SET, None, []).data.uri == SET
    assert load_evaluation(SET, None, []).data.uri == SET


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one of the commands, and return its result; standard output takes ASCII only."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([str(each) for each in arguments]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.isascii()
        line: dict[str, Any] = json.loads(last)
        return line

    return run


@pytest.mark.ray
@pytest.mark.slow
def test_an_emoji_goes_through_audit_packing_and_scoring(
    ray_session: Session, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.chdir(tmp_path)
    files = {f"{c}/{n} 🙂.jpg": encoded(picture(n)) for c in (GOOD, "bad") for n in range(12)}
    write(tmp_path / SET, files)
    line = run(audit, SET, "network.weights=none")
    report = Path(line["report"]).read_text()
    assert Path(line["report"]).parent.name == SET
    assert GOOD in report
    assert "0 🙂.jpg" in report
    found = pq.read_table(line["findings"]).to_pylist()
    conflicts = {one["path"] for one in found if one["finding"] == "label_conflict"}
    assert conflicts == {f"{tmp_path / SET}/{name}" for name in files}
    assert json.loads(Path(line["summary"]).read_text())["counts"][GOOD]
    packed = run(pack, SET, f"{SET} packed")
    assert packed["num_images"] == 24
    listed = list_packed(DataConfig(uri=packed["uri"], source="packed")).table
    assert set(listed["path"].to_pylist()) == set(files)
    bundle = tiny_bundle(tmp_path / "m", classes=(GOOD, "bad"), size=32)
    for source in (SET, f"{SET} packed"):
        line = run(score, source, "s 🙂.parquet", "--bundle", bundle, "--truth", "--overwrite")
        assert line["num_scored"] == 24
        table = pq.read_table(line["output"])
        assert set(table["truth"].to_pylist()) == {GOOD, "bad"}
        prefix = f"{tmp_path / SET}/" if source == SET else ""
        assert set(table["path"].to_pylist()) == {f"{prefix}{name}" for name in files}


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (audit, ["odd\udcff"]),
        (audit, ["set", "--output", "odd\udcff"]),
        (pack, ["odd\udcff", "packed"]),
        (pack, ["set", "odd\udcff"]),
        (score, ["odd\udcff", "s.csv", "--bundle", "m/1"]),
        (score, ["set", "odd\udcff.csv", "--url", "http://localhost/v2/models/m"]),
    ],
)
def test_a_place_whose_name_is_no_unicode_is_refused_by_every_command(
    main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search(r"odd\\xff(\.csv)? holds bytes that are no UTF-8", shown)


def test_a_member_of_a_tar_file_whose_name_is_no_unicode_is_listed(tmp_path: Path) -> None:
    write(tmp_path, {"1.jpg": jpeg(1), "1.cls": b"good"})
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for suffix in ("jpg", "cls"):
            tar.add(tmp_path / f"1.{suffix}", os.fsdecode(b"odd\xff.") + suffix)
    (shard,) = find_shards(str(tmp_path))
    table = ShardReader(shard, DataConfig(uri=str(tmp_path), source="webdataset")).read()
    assert table["path"].to_pylist() == [rf"{tmp_path}/set.tar/odd\xff.jpg"]
    assert table["reason"].to_pylist() == [""]
