"""The rows scored so far, so that a run that is killed can be resumed.

They are small Parquet files in the run's folder (`jobs.score.work`), each of which appears whole or
not at all. A resumed run reads which images they have. A part of which any column cannot be read is
left out, and its images are scored again; so are rows that failed because a store or the server
did.
"""

from __future__ import annotations

import io
import logging
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.lease import Lease
from jobs.score.answer import Answer
from jobs.score.columns import KEY, KEY_BYTES, Columns, digest
from jobs.score.ordering import OWN, Order
from jobs.score.work import PARTS
from models.errors import AccessError, StorageError
from models.storage import Store

logger = logging.getLogger(__name__)

PART_NAME = re.compile(r"\d+-[0-9a-f]+-\d+\.parquet")  # generation, run, number
COUNTED = [KEY, "code"]  # of parts of earlier runs, in memory for all of them
ROWS_PER_PART = 2000
SECONDS_PER_PART = 10.0
BYTES_PER_PART = 16 << 20
# Failures that may be gone tomorrow.
TRIED_AGAIN = frozenset({StorageError.code, AccessError.code, "server_failed", "worker_failed"})

Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class OldPart:
    """A part of an earlier run, and which of its rows count."""

    key: str
    keep: npt.NDArray[np.bool_]


class Done:
    """The images that need not be scored again: 24 bytes for each."""

    def __init__(self, keys: Keys) -> None:
        """`keys` are in the order of the rows."""
        self._rows = np.argsort(keys)
        self._keys = keys[self._rows]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> int | None:
        """Return which row the image has, counted through all earlier ones, or None."""
        if not len(self._keys):
            return None
        wanted = np.frombuffer(digest(key), f"S{KEY_BYTES}")
        place = int(np.searchsorted(self._keys, wanted)[0])
        if place == len(self._keys) or self._keys[place] != wanted[0]:
            return None
        return int(self._rows[place])


class Parts:
    """Rows of this run on their way into parts, beside those of earlier runs."""

    def __init__(self, store: Store, columns: Columns, lease: Lease) -> None:
        self._store = store
        self._columns = columns
        self._lease = lease
        self._old: list[OldPart] = []
        # Names that no other run uses, not even one that was thought dead and is not.
        self._run = secrets.token_hex(4)
        self._generation = 1
        self._own: list[str] = []
        self._rows: list[Answer] = []  # or those, by what the run makes of an image
        self._tables: list[pa.Table] = []
        self._num_bytes = 0
        self._last = time.monotonic()

    def load(self) -> tuple[Done, Iterator[pa.Table]]:
        """Return which images earlier runs have scored, and their rows."""
        found: list[tuple[str, pa.Table]] = []
        names = self._names()
        for name in names:
            self._generation = max(self._generation, 1 + int(name.partition("-")[0]))
            with suppress(_Unreadable):
                # All of it: a part that is found damaged later would end every run anew.
                found.append((f"{PARTS}/{name}", self._read(f"{PARTS}/{name}").select(COUNTED)))
        if len(found) < len(names):
            logger.warning(
                "%d of %d parts of the unfinished run in %s are damaged: their images are scored "
                "again",
                *(len(names) - len(found), len(names), self._store.uri),
            )
        keys = [_keys(table) for _, table in found]
        counts = [
            ~np.isin(np.array(table["code"].to_pylist(), dtype=object), list(TRIED_AGAIN))
            for _, table in found
        ]
        everything = np.concatenate(keys) if keys else np.empty(0, f"S{KEY_BYTES}")
        is_sound = np.concatenate(counts) if counts else np.empty(0, bool)
        # An image counts once, even if a run that was thought dead wrote it as well.
        places = np.flatnonzero(is_sound)
        _, first = np.unique(everything[places], return_index=True)
        keep = np.zeros(len(everything), bool)
        keep[places[first]] = True
        start = 0
        for key, table in found:
            self._old.append(OldPart(key, keep[start : start + table.num_rows]))
            start += table.num_rows
        return Done(everything[keep]), map(self._old_table, self._old)

    def add(self, rows: Sequence[Answer] | pa.Table) -> pa.Table | None:
        """Take rows; returns those that were written because of them, if any were."""
        if isinstance(rows, pa.Table):
            self._tables.append(rows)
            self._num_bytes += rows.nbytes
        else:
            self._rows += rows
            self._num_bytes += sum(len(a.embedding or ()) * 4 + len(a.scores) * 20 for a in rows)
        num_rows = len(self._rows) + sum(table.num_rows for table in self._tables)
        is_due = time.monotonic() - self._last > SECONDS_PER_PART
        if num_rows >= ROWS_PER_PART or self._num_bytes >= BYTES_PER_PART or is_due:
            return self.flush()
        return None

    def flush(self) -> pa.Table | None:
        """Write the rows that wait, if any, and return them."""
        self._last = time.monotonic()
        if self._rows:
            self._tables.append(self._columns.to_table(self._rows))
            self._rows = []
        if not self._tables:
            return None
        self._lease.check()
        table = pa.concat_tables(self._tables).combine_chunks()
        key = f"{PARTS}/{self._generation:04}-{self._run}-{len(self._own):06}.parquet"
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        self._store.write(key, buffer.getvalue())
        self._own.append(key)
        self._tables, self._num_bytes = [], 0
        return table

    def check_lease(self) -> None:
        """Raise `ConfigError` when another run has taken over."""
        self._lease.check()

    def tables(self, order: Order) -> Iterator[pa.Table]:
        """Yield all rows that count, in that order, a part or a piece of one at a time."""
        own = _Rows(self._read(key) for key in self._own)
        ends = np.cumsum([part.keep.sum() for part in self._old])
        at, table = -1, None  # rows that stand together mostly lie in one part, too
        for start, length in order.stretches():
            if start == OWN:
                yield from own.take(length)
                continue
            while length:
                number = int(np.searchsorted(ends, start, side="right"))
                if number != at or table is None:
                    at, table = number, self._old_table(self._old[number])
                first = start - int(ends[number]) + table.num_rows
                piece = table.slice(first, length)
                yield piece
                start, length = start + piece.num_rows, length - piece.num_rows

    def _old_table(self, part: OldPart) -> pa.Table:
        return self._read(part.key).filter(pa.array(part.keep))

    def _names(self) -> list[str]:
        """Return the names of the parts, in the order in which they were written, run by run."""
        names = (e.key.rpartition("/")[2] for e in self._store.child(PARTS).list_children()[1])
        return sorted(name for name in names if PART_NAME.fullmatch(name))

    def _read(self, key: str) -> pa.Table:
        """Return the rows of a part. Raises `_Unreadable` where it is not as it was written."""
        data = self._store.read(key)
        try:
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            if not table.schema.equals(self._columns.part_schema()):
                raise pa.ArrowInvalid("its columns are not those of this run")
        except (pa.ArrowException, OSError) as error:
            raise _Unreadable(f"{self._store.uri}/{key} cannot be read: {error}") from error
        return table


class _Rows:
    """Rows of tables, to be taken a few at a time."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._left: pa.Table | None = None

    def take(self, length: int) -> Iterator[pa.Table]:
        """Yield the next rows, so many in all."""
        while length:
            if self._left is None or not self._left.num_rows:
                self._left = next(self._tables)
            piece = self._left.slice(0, length)
            self._left = self._left.slice(piece.num_rows)
            length -= piece.num_rows
            yield piece


class _Unreadable(StorageError):
    pass


def _keys(table: pa.Table) -> Keys:
    array = table[KEY].combine_chunks().cast(pa.binary(KEY_BYTES))
    buffer = array.buffers()[1]
    flat = np.frombuffer(buffer, f"S{KEY_BYTES}")[array.offset : array.offset + len(array)]
    return flat.copy()
