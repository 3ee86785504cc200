"""The order of rows in an output, whoever scored them, and the groups they are written in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.lease import acquire
from jobs.score import output
from jobs.score.answer import Answer
from jobs.score.columns import Columns
from jobs.score.items import Item
from jobs.score.ordering import OWN, Order, Stretch
from jobs.score.output import write_output
from jobs.score.parts import Parts
from jobs.score.reading import Failure
from models.storage import open_store

COLUMNS = Columns(False, True, "none", 1, 0)


def answer(number: int, code: str = "") -> Answer:
    """Return a row."""
    item = Item(f"{number}", f"{number:04}.jpg", f"{number:04}.jpg")
    return Answer(item, failure=Failure("why", code)) if code else Answer(item, "good", 0.9)


def test_rows_that_stand_together_are_one_note() -> None:
    order = Order(6)
    for row in (0, 1, 4):
        order.add_earlier(row)
    order.add_own()
    order.add_own()
    order.add_earlier(5)
    found = list(order.stretches())
    assert found[:4] == [Stretch(0, 2), Stretch(4, 1), Stretch(OWN, 2), Stretch(5, 1)]
    assert found[4:] == [Stretch(2, 2)]  # of images that are gone


def test_rows_of_several_runs_stand_in_the_order_of_the_listing(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    store = open_store(tmp_path)
    lease = acquire(store, "--output")
    chance = random.Random(5)
    done = Parts(store, COLUMNS, lease).load()[0]
    for _ in range(3):  # runs that are each ended after a while, with some rows of a failing store
        parts = Parts(store, COLUMNS, lease)
        done, _ = parts.load()
        left = [number for number in range(200) if done.find(str(number)) is None]
        for start in range(0, min(len(left), 60), 7):
            parts.add(
                [answer(n, chance.choice(["", "", "storage"])) for n in left[start : start + 7]]
            )
            parts.flush()
    parts = Parts(store, COLUMNS, lease)
    done, _ = parts.load()
    assert 50 < len(done) < 190
    order = Order(len(done))
    for number in range(200):
        row = done.find(str(number))
        if row is None:
            order.add_own()
            parts.add([answer(number)])
        else:
            order.add_earlier(row)
    parts.flush()
    paths = [path for table in parts.tables(order) for path in table["path"].to_pylist()]
    lease.release(forget=False)
    assert paths == [f"{number:04}.jpg" for number in range(200)]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_bytes_of_an_output_do_not_depend_on_where_parts_end(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "ROWS_PER_GROUP", 300)
    table = COLUMNS.to_table([answer(n, "image_type" if n % 9 == 0 else "") for n in range(1000)])
    chance = random.Random(3)

    def pieces(largest: int) -> Iterator[pa.Table]:
        start = 0
        while start < len(table):
            length = chance.randint(1, largest)
            yield table.slice(start, length)
            start += length

    written = []
    for largest in (1, 40, 2000):
        path = tmp_path / f"{largest}.{suffix}"
        write_output(str(path), pieces(largest), COLUMNS, [], str(tmp_path))
        written.append(path.read_bytes())
    assert written[0] == written[1] == written[2]
