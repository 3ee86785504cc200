"""The parts of a run, read again by the next one."""

from __future__ import annotations

from pathlib import Path

from jobs.lease import acquire
from jobs.score.answer import Answer
from jobs.score.columns import Columns
from jobs.score.items import Item
from jobs.score.parts import Parts
from models.storage import open_store


def test_an_image_that_two_runs_wrote_counts_once(tmp_path: Path) -> None:
    store, columns = open_store(tmp_path), Columns(False, True, "none", 1, 0)
    taken = acquire(store, "--output")
    (first, *others) = (Answer(Item(f"{n}", f"{n}.jpg", f"{n}.jpg"), "good", 0.9) for n in range(4))
    awake, asleep = Parts(store, columns, taken), Parts(store, columns, taken)
    awake.add([first, *others[:1]])
    asleep.add([first, *others[1:]])
    assert awake.flush() is not None
    assert asleep.flush() is not None
    resumed = Parts(store, columns, taken)
    done, tables = resumed.load()
    assert len(done) == 4
    assert sorted(done.find(str(n)) or 0 for n in range(4)) == [0, 1, 2, 3]
    assert done.find("4") is None
    found = [path for table in tables for path in table["path"].to_pylist()]
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    taken.release(forget=True)
