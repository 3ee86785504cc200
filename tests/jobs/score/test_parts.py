"""The parts of a run, read again by the next one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.lease import Lease
from jobs.score.answer import Answer
from jobs.score.columns import Columns
from jobs.score.items import Item
from jobs.score.parts import Parts
from jobs.score.work import take
from models.storage import Store, open_store

COLUMNS = Columns(False, True, "none", 1, 64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def taken(store: Store) -> Iterator[Lease]:
    lease = take(store)
    yield lease
    lease.release(forget=True)


def answers(*numbers: int) -> list[Answer]:
    vectors = np.random.default_rng(0).random((len(numbers), 64)).tolist()
    return [
        Answer(Item(f"{n}", f"{n}.jpg", f"{n}.jpg"), "good", 0.9, embedding=vector)
        for n, vector in zip(numbers, vectors, strict=True)
    ]


def write(store: Store, taken: Lease, *numbers: int, columns: Columns = COLUMNS) -> None:
    """Write one part of a run of its own."""
    parts = Parts(store, columns, taken)
    parts.load()
    parts.add(answers(*numbers))
    assert parts.flush() is not None


def test_an_image_that_two_runs_wrote_counts_once(store: Store, taken: Lease) -> None:
    awake, asleep = Parts(store, COLUMNS, taken), Parts(store, COLUMNS, taken)
    awake.add(answers(0, 1))
    asleep.add(answers(0, 2, 3))
    assert awake.flush() is not None
    assert asleep.flush() is not None
    done, tables = Parts(store, COLUMNS, taken).load()
    assert len(done) == 4
    assert sorted(done.find(str(n)) or 0 for n in range(4)) == [0, 1, 2, 3]
    assert done.find("4") is None
    found = [path for table in tables for path in table["path"].to_pylist()]
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize("column", range(len(COLUMNS.part_schema())))
def test_a_part_of_which_any_column_is_damaged_is_scored_again(
    store: Store, taken: Lease, tmp_path: Path, column: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, taken, 0, 1)
    write(store, taken, 2, 3)
    part = max((tmp_path / "parts").iterdir())
    about = pq.read_metadata(part).row_group(0).column(column)
    data = bytearray(part.read_bytes())
    end = (about.dictionary_page_offset or about.data_page_offset) + about.total_compressed_size
    data[end - 6] ^= 0x01  # of vectors, which nothing compresses, one digit
    part.write_bytes(data)
    done, tables = Parts(store, COLUMNS, taken).load()
    assert [row for table in tables for row in table["path"].to_pylist()] == ["0.jpg", "1.jpg"]
    assert len(done) == 2
    assert done.find("2") is None
    assert "1 of 2 parts of the unfinished run" in caplog.text


def test_a_part_with_other_columns_and_files_that_are_none_are_left_out(
    store: Store, taken: Lease, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, taken, 0)
    (tmp_path / "parts" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "parts" / "my.parquet").write_bytes(b"")
    assert len(Parts(store, COLUMNS, taken).load()[0]) == 1
    assert not caplog.text
    other = Columns(True, True, "none", 1, 64)
    assert len(Parts(store, other, taken).load()[0]) == 0
    assert "1 of 1 parts of the unfinished run" in caplog.text
