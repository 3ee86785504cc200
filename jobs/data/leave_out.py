"""Images that a table says to leave out: what `jobs.data.audit` writes, or a table of your own.

A row names an image by its path, or where that is empty, by the SHA-256 of its content. Paths are
compared whole and by what stands below the set's folder, so that an audit of a local copy serves
the set in a bucket.

A fact one would get wrong: content does not do instead of a path. Of two copies of one file, one in
train and one in test, only the first is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from jobs.data.config import DataConfig
from jobs.data.manifest import read_table, refuse_twice, texts
from models.errors import DataError
from models.storage import open_store, split_uri

ROOT = b"sightline.root"  # metadata of an audit's table: what its paths begin with
COLUMNS = ("path", "sha256", "leave_out")
SAID = {"true": True, "1": True, "false": False, "0": False, "": False}


@dataclass(frozen=True)
class LeaveOut:
    """The images to leave out: digests ("" if not known) by path, and contents without a path."""

    uri: str
    root: str
    digests: dict[str, str]
    contents: frozenset[str]


@dataclass(frozen=True)
class Kept:
    """Which rows of a listing stay (N,), and what the user should know."""

    rows: npt.NDArray[np.bool_]
    warnings: tuple[str, ...]


def load_leave_out(uri: str) -> LeaveOut:
    """Read a table (Parquet, CSV, JSON lines) with the columns `path`, `sha256` and `leave_out`.

    Raises `DataError` naming the file and the column that is missing or not as expected.
    """
    folder, name = split_uri(uri)
    data = open_store(folder).read(name)
    table = read_table(uri, name, data, "data.leave_out")
    for column in COLUMNS:
        if column not in table.column_names:
            raise DataError(
                f"data.leave_out {uri} has no column {column!r}; expected {', '.join(COLUMNS)}, as "
                "findings.parquet of jobs.data.audit"
            )
        refuse_twice(table, column, f"data.leave_out {uri}")
    paths, digests = texts(table, "path"), texts(table, "sha256")
    marked: dict[str, str] = {}
    contents: set[str] = set()
    for row, is_marked in enumerate(_marks(uri, table)):
        if is_marked and paths[row]:
            marked[paths[row]] = digests[row]
        elif is_marked and digests[row]:
            contents.add(digests[row])
    root = (table.schema.metadata or {}).get(ROOT, b"").decode()
    return LeaveOut(uri, root, marked, frozenset(contents))


def apply_leave_out(table: pa.Table, config: DataConfig, marked: LeaveOut) -> Kept:
    """Say which rows of an examined listing stay."""
    own_root = root_of(config.uri)
    by_name = {_below(path, marked.root): digest for path, digest in marked.digests.items()}
    met: set[str] = set()
    stays = np.ones(len(table), dtype=bool)
    changed = 0
    rows = zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    for row, (path, digest) in enumerate(rows):
        # As it stands, or below the set: a table of one's own may have either.
        name = path if path in by_name else _below(path, own_root)
        wanted = by_name.get(name)
        if wanted is None:
            stays[row] = digest not in marked.contents or not digest
            continue
        met.add(name)
        if wanted and digest and wanted != digest:
            changed += 1
        else:
            stays[row] = False
    return Kept(stays, tuple(_tell(marked, stays, changed, len(by_name) - len(met))))


def root_of(uri: str) -> str:
    """Return what the paths of a set begin with: its folder, or that of the file that lists it."""
    parent, name = split_uri(uri)
    is_file = name.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".tar"))
    if is_file:
        return parent
    return f"/{name}" if parent == "/" else f"{parent}/{name}"


def _tell(
    marked: LeaveOut, stays: npt.NDArray[np.bool_], changed: int, missing: int
) -> Iterator[str]:
    left_out = int((~stays).sum())
    yield f"{left_out:,} images were left out, as data.leave_out {marked.uri} says"
    if changed:
        yield f"{changed:,} images of data.leave_out have another content now and stay"
    if missing:
        yield f"{missing:,} images of data.leave_out are not in the set"


def _marks(uri: str, table: pa.Table) -> list[bool]:
    column = table["leave_out"]
    if pa.types.is_boolean(column.type):
        return [bool(value) for value in column.to_pylist()]
    said = [value.casefold() for value in texts(table, "leave_out")]
    wrong = next(
        ((row, value) for row, value in enumerate(said, start=1) if value not in SAID), None
    )
    if wrong is not None:
        raise DataError(
            f"data.leave_out {uri}: column 'leave_out' says {wrong[1]!r} in row {wrong[0]}; "
            "expected true or false"
        )
    return [SAID[value] for value in said]


def _below(path: str, root: str) -> str:
    return path.removeprefix(f"{root}/") if root else path
