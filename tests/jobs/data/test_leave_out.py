from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from jobs.data.audit.findings import Finding, to_table
from jobs.data.config import DataConfig
from jobs.data.leave_out import Kept, apply_leave_out, load_leave_out, root_of
from models.errors import DataError


def listing(*rows: tuple[str, str]) -> pa.Table:
    return pa.table({"path": [row[0] for row in rows], "sha256": [row[1] for row in rows]})


def kept(table: pa.Table, uri: str, marks: Path) -> Kept:
    return apply_leave_out(table, DataConfig(uri=uri), load_leave_out(str(marks)))


def csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["path,sha256,leave_out", *lines]))
    return path


def test_marked_images_go_and_their_copies_stay(tmp_path: Path) -> None:
    marks = csv(tmp_path / "m.csv", "/s/train/1.jpg,aa,true", "/s/train/2.jpg,bb,false")
    rows = listing(("/s/test/1.jpg", "aa"), ("/s/train/1.jpg", "aa"), ("/s/train/2.jpg", "bb"))
    found = kept(rows, "/s", marks)
    assert found.rows.tolist() == [True, False, True]
    assert found.warnings == (f"1 images were left out, as data.leave_out {marks} says",)


def test_an_audit_of_a_local_copy_serves_the_set_in_a_bucket(tmp_path: Path) -> None:
    marked = Finding("copy", "", path="/data/caps/good/1.jpg", sha256="aa", leave_out=True)
    pyarrow.parquet.write_table(to_table([marked], "/data/caps"), tmp_path / "f.parquet")
    rows = listing(("s3://b/caps/good/1.jpg", "aa"), ("s3://b/caps/good/2.jpg", "aa"))
    assert kept(rows, "s3://b/caps", tmp_path / "f.parquet").rows.tolist() == [False, True]


def test_an_image_that_was_replaced_since_stays_and_is_told_of(tmp_path: Path) -> None:
    marks = csv(tmp_path / "m.csv", "/s/1.jpg,aa,true", "/s/gone.jpg,cc,1")
    found = kept(listing(("/s/1.jpg", "other")), "/s", marks)
    assert found.rows.tolist() == [True]
    assert "1 images of data.leave_out have another content now and stay" in found.warnings
    assert "1 images of data.leave_out are not in the set" in found.warnings


def test_without_a_path_the_content_decides(tmp_path: Path) -> None:
    found = kept(
        listing(("/s/1.jpg", "aa"), ("/s/2.jpg", "aa"), ("/s/3.jpg", "")),
        "/s",
        csv(tmp_path / "m.csv", ",aa,true"),
    )
    assert found.rows.tolist() == [False, False, True]


def test_one_mark_among_several_findings_is_enough(tmp_path: Path) -> None:
    marks = csv(tmp_path / "m.csv", "/s/1.jpg,aa,false", "/s/1.jpg,aa,true", "/s/1.jpg,aa,false")
    assert kept(listing(("/s/1.jpg", "aa")), "/s", marks).rows.tolist() == [False]


@pytest.mark.parametrize("missing", ["path", "sha256", "leave_out"])
def test_a_missing_column_is_named_with_the_file(tmp_path: Path, missing: str) -> None:
    columns = {"path": ["a"], "sha256": ["b"], "leave_out": [True]}
    del columns[missing]
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=rf"f\.parquet has no column '{missing}'"):
        load_leave_out(str(tmp_path / "f.parquet"))


def test_a_mark_that_is_neither_true_nor_false_is_named(tmp_path: Path) -> None:
    marks = csv(tmp_path / "m.csv", "a,b,true", "a,b,maybe")
    with pytest.raises(DataError, match=r"m\.csv: column 'leave_out' says 'maybe' in row 2"):
        load_leave_out(str(marks))


@pytest.mark.parametrize("name", ["m.parquet", "m.txt"])
def test_a_file_that_is_no_table_is_refused_as_what_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(DataError, match=rf"data\.leave_out .*{name}"):
        load_leave_out(str(tmp_path / name))


def test_the_root_of_a_list_is_its_folder(tmp_path: Path) -> None:
    assert root_of("s3://b/lists/a.csv") == "s3://b/lists"
    assert root_of("s3://b/set.v2/") == "s3://b/set.v2"
    assert root_of("s3://b") == "s3://b"
    assert root_of(str(tmp_path)) == str(tmp_path)


def test_a_table_of_ones_own_may_have_whole_paths(tmp_path: Path) -> None:
    marks = csv(tmp_path / "mine.csv", "/data/caps/good/1.jpg,,true")
    rows = listing(("/data/caps/good/1.jpg", "aa"), ("/data/caps/good/2.jpg", "bb"))
    found = kept(rows, "/data/caps", marks)
    assert found.rows.tolist() == [False, True]
    assert not any("not in the set" in warning for warning in found.warnings)
    assert root_of("/caps") == "/caps"
