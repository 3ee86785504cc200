"""Images of Parquet files that others wrote: one is read with its whole row group."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from jobs.data.locate import split_at_root
from models.errors import DataError, ImageDecodeError, NotFoundError
from models.storage import Store, is_remote

IMAGE_COLUMN = "image"


def read_rows(uri: str, rows: Sequence[int]) -> list[bytes]:
    """Return the images of some rows of a file; the row groups that hold them are read whole.

    Raises `ImageDecodeError` where a row has none.
    """
    try:
        return _read_rows(uri, rows)
    except DataError as error:  # one damaged row group is the fault of its images
        raise ImageDecodeError(str(error)) from error


def _read_rows(uri: str, rows: Sequence[int]) -> list[bytes]:
    images: list[bytes] = []
    stamp = _stamp(uri)
    ends = _group_ends(uri, stamp)
    for row in rows:
        group = int(np.searchsorted(ends, row, side="right"))
        if group == len(ends):
            raise ImageDecodeError(f"{uri} has no row {row:,} any more; it was replaced")
        start = int(ends[group - 1]) if group else 0
        with _reading:  # a second thread finds the group there instead of fetching it, too
            column = _row_group(uri, stamp, group)
        data = column[row - start].as_py()
        if data is None:
            raise ImageDecodeError(f"{uri} has no image in row {row:,}")
        images.append(data)
    return images


_reading = threading.Lock()


def _stamp(uri: str) -> tuple[int, int]:
    """Return what tells a local file from another one of its name."""
    if is_remote(uri):
        return (0, 0)
    try:
        found = os.stat(uri)
    except OSError as error:
        raise NotFoundError(f"cannot read {uri}: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns


@lru_cache(maxsize=256)
def _group_ends(uri: str, _stamp: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return before which row each row group ends."""
    with open_parquet(uri) as file:
        groups = range(file.num_row_groups)
        return np.cumsum([file.metadata.row_group(group).num_rows for group in groups])


@lru_cache(maxsize=2)  # what comes next is mostly in the same one
def _row_group(uri: str, _stamp: tuple[int, int], group: int) -> pa.Array:
    with open_parquet(uri) as file:
        column = file.read_row_group(group, columns=[IMAGE_COLUMN])[IMAGE_COLUMN].combine_chunks()
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    return column


@contextmanager
def open_parquet(uri: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Open a Parquet file anywhere. Raises `DataError` for one that is none, or damaged where it is
    read, and `StorageError`.
    """
    try:
        if is_remote(uri):
            root, key = split_at_root(uri)
            source = pa.PythonFile(Store(root, is_patient=True).open_seekable(key), mode="r")
        else:
            source = pa.OSFile(uri)
        with source, pyarrow.parquet.ParquetFile(source) as file:
            yield file
    except (pa.ArrowException, OSError) as error:  # OSError: a page that is damaged
        raise DataError(f"{uri} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
