"""From parts to the one finished file, which appears whole or not at all.

Cells of a CSV file that a spreadsheet would take for a formula get an apostrophe in front; so do
those that begin with one, so that taking away one apostrophe gives every cell back. Parquet has
types and needs none of that.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.score.columns import Columns
from jobs.score.work import SCRATCH
from models.errors import ConfigError, StorageError
from models.storage import is_remote, normalise_uri, open_store, split_uri

ROWS_PER_GROUP = 50_000
BYTES_PER_GROUP = 64 << 20
MAX_WAITING = 64  # small tables, before they are copied into one
# What spreadsheets take for the beginning of a formula, in their wide forms too.
FORMULA = r"^[=+\-@\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}\t\r\n']"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # without it, spreadsheets read UTF-8 as something else


class Writer(Protocol):
    """What takes tables one after the other."""

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""
        ...


def check_output(uri: str, *, has_embedding: bool) -> str:
    """Return the full URI of an output, or raise `ConfigError` for one that cannot be written."""
    full = normalise_uri(uri)
    suffix = _suffix(full)
    if suffix not in WRITERS:
        raise ConfigError(
            f"--output {uri!r} ends with {suffix or 'nothing'}; expected {' or '.join(WRITERS)}"
        )
    if has_embedding and suffix == ".csv":
        raise ConfigError(
            f"--output {uri!r}: embeddings do not go into CSV; give a name that ends with .parquet"
        )
    if not is_remote(full) and Path(full).is_dir():
        raise ConfigError(f"--output {uri!r} is a folder; give the name of a file")
    return full


def output_exists(uri: str) -> bool:
    """Say whether there is a finished output."""
    folder, name = split_uri(uri)
    if not is_remote(uri):
        return Path(uri).exists()
    return open_store(folder).exists(name)


def failed_share(uri: str) -> float:
    """Return which share of the images in a finished output has no answer.

    Raises `StorageError` where it cannot be read.
    """
    folder, name = split_uri(uri)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(uri)
        if is_remote(uri):
            path = Path(scratch) / name
            open_store(folder).download(name, path)
        try:
            if _suffix(uri) == ".csv":
                only_codes = pyarrow.csv.ConvertOptions(
                    include_columns=["code"], strings_can_be_null=True
                )
                codes = pyarrow.csv.read_csv(path, convert_options=only_codes)["code"]
            else:
                codes = pq.read_table(path, columns=["code"])["code"]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise StorageError(f"{uri} cannot be read: {error}") from error
    return float((len(codes) - codes.null_count) / max(1, len(codes)))


def write_output(
    uri: str, parts: Iterator[pa.Table], columns: Columns, labels: Sequence[str], work: str
) -> None:
    """Write all rows to `uri`; `work` is the folder of the unfinished run.

    Raises `StorageError`.
    """
    try:
        _write(uri, parts, columns, labels, work)
    except OSError as error:
        raise StorageError(f"cannot write {uri}: {error.strerror or error}") from error


def _write(
    uri: str, parts: Iterator[pa.Table], columns: Columns, labels: Sequence[str], work: str
) -> None:
    folder, name = split_uri(uri)
    # On a disk in the same file system, so that one rename is enough.
    with tempfile.TemporaryDirectory(
        prefix=SCRATCH, dir=None if is_remote(uri) else work
    ) as scratch:
        path = Path(scratch) / name
        schema = columns.final_schema(labels)
        with WRITERS[_suffix(uri)](path, schema) as writer:
            rows = max(1, min(ROWS_PER_GROUP, BYTES_PER_GROUP // row_bytes(schema)))
            for table in _groups((columns.finish(part, labels) for part in parts), rows):
                writer.write_table(table)
        if is_remote(uri):
            open_store(folder, is_patient=True).upload(name, path)
            return
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(uri)


def guard(table: pa.Table) -> pa.Table:
    """Return the table with an apostrophe in front of every text that looks like a formula."""
    for position, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table[field.name]
            marked = pc.binary_join_element_wise("'", column, "")
            safe = pc.if_else(pc.match_substring_regex(column, FORMULA), marked, column)
            table = table.set_column(position, field, safe)
    return table


def row_bytes(schema: pa.Schema) -> int:
    """Return about how many bytes a row takes; the same for the same columns, whatever is in it."""
    width = sum(f.type.list_size for f in schema if pa.types.is_fixed_size_list(f.type))
    return int(4 * width + 24 * len(schema))


def _groups(tables: Iterator[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Cut and join tables to groups of so many rows, wherever the tables begin and end: so the
    bytes of the output do not depend on when a run was interrupted.
    """
    waiting: list[pa.Table] = []
    length = 0
    for table in tables:
        while table.num_rows:
            piece = table.slice(0, num_rows - length)
            table = table.slice(piece.num_rows)
            waiting.append(piece)
            length += piece.num_rows
            if length == num_rows:
                yield _joined(waiting)
                waiting, length = [], 0
            elif len(waiting) >= MAX_WAITING:
                waiting = [_joined(waiting)]
    if waiting:
        yield _joined(waiting)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Writer]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer


class _GuardedCsv:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write_table(self, table: pa.Table) -> None:
        self._writer.write_table(guard(table))


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Writer]:
    with path.open("wb") as file:
        file.write(BYTE_ORDER_MARK)
        with pyarrow.csv.CSVWriter(file, schema) as writer:
            yield _GuardedCsv(writer)


WRITERS = {".parquet": _parquet, ".csv": _csv}


def _suffix(uri: str) -> str:
    return Path(uri.rpartition("/")[2]).suffix.lower()
