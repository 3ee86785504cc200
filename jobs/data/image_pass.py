"""One pass over the images of a listing in Ray tasks, a few dozen images at a time.

It knows how rows reach a task and results come back, and nothing of what is looked for in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa
import ray

from jobs.data import places
from jobs.data.chunks import Columns, Pace, run_chunks
from jobs.data.config import DataConfig

# Small enough that a small set keeps every CPU busy and the progress moves.
CHUNK = 64
AHEAD = 64

Look = Callable[[pa.Table], Columns]


def pass_over(
    table: pa.Table,
    look: Look,
    config: DataConfig,
    *,
    bytes_per_row: int,
    cpu_limit: float | None = None,
) -> Iterator[Columns]:
    """Yield what `look` says of the rows, in their order; it is called in Ray tasks, with the
    places and boxes of some rows each, and what it returns takes about so many bytes for a row.

    Needs a running Ray.
    """
    size = min(config.images_per_task, CHUNK)
    rows = ray.put(table.select([*places.SCHEMA.names, "box"]).combine_chunks())
    pace = Pace(chunk_bytes=size * bytes_per_row, ahead=AHEAD, cpu_limit=cpu_limit)
    return run_chunks(partial(_look, look=look, rows=rows, size=size), -(-len(table) // size), pace)


def _look(chunk: int, look: Look, rows: ray.ObjectRef[pa.Table], size: int) -> Columns:
    return look(ray.get(rows).slice(chunk * size, size))
