"""What a source lists: one row per image with its path, label and, where given, split and more.

`list_source` picks the reader by name. Nothing is decoded here: whether a listed file is an image
is found out by `index`, except where reading a container had to go through its images anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from jobs.data import places
from jobs.data.config import DataConfig
from jobs.data.quarantine import Broken
from models.errors import DataError
from models.storage import open_store

BOX = pa.list_(pa.int32(), 4)  # left, top, right, bottom in pixels of the upright image
GIVEN = (  # what a user may say about an image beside its label
    pa.field("split", pa.string()),
    pa.field("group", pa.string()),
    pa.field("weight", pa.float32()),
    pa.field("box", BOX),
)
EXAMINED = (  # what is known of an image that was read; `reason` says why it cannot be used, or ""
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("reason", pa.string()),
)
SCHEMA = pa.schema([*places.FIELDS, pa.field("label", pa.string()), *GIVEN, *EXAMINED])
ROWS_PER_CHUNK = 65_536

# Called with (done so far, in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Listing:
    """All images that a source names, with the columns of `SCHEMA`. What a source does not say is
    null; `reason` is null where the image was not read yet.
    """

    table: pa.Table
    ignored: int = 0  # files that are not images by their name, or are hidden
    broken: tuple[Broken, ...] = ()  # containers that could not be read to their end
    warnings: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()  # class folders without an image
    # Of a set that was made ready before: the order of its classes. Its splits are then whole, too.
    classes: tuple[str, ...] | None = None
    num_lost: int = 0  # images that `broken` held beyond what was found, by the size of whole ones


class Row(NamedTuple):
    """One image of a source that gives a file to each."""

    path: str
    label: str
    split: str | None = None
    group: str | None = None
    weight: float | None = None
    box: tuple[int, int, int, int] | None = None


@dataclass
class ListingBuilder:
    """Collects rows into Arrow chunks, so that millions of rows do not live as Python objects."""

    _chunks: list[pa.RecordBatch] = field(default_factory=list)
    _rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Append one image."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_CHUNK:
            self._flush()

    def build(self) -> pa.Table:
        """Return the table of all rows added."""
        self._flush()
        return pa.Table.from_batches(self._chunks, SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            columns = dict(zip(Row._fields, zip(*self._rows, strict=True), strict=True))
            self._chunks.append(complete(columns, len(self._rows)))
            self._rows = []


def complete(columns: Mapping[str, Any], num_rows: int) -> pa.RecordBatch:
    """Return a batch of all columns of `SCHEMA`; those that are not given are null."""
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(num_rows, field.type)
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def list_source(
    config: DataConfig, progress: Progress | None = None, *, cpu_limit: float | None = None
) -> Listing:
    """List the source's images. Raises `DataError` for a set that makes no sense, `StorageError`
    when it cannot be reached. Tar files are read through to find what they hold, by Ray tasks;
    `progress` counts them.
    """
    from jobs.data.folder import list_folder
    from jobs.data.manifest import list_manifest
    from jobs.data.packed import list_packed
    from jobs.data.webdataset import list_webdataset

    readers: dict[str, Callable[[DataConfig], Listing]] = {
        "folder": list_folder,
        "manifest": list_manifest,
        "packed": list_packed,
        "webdataset": partial(list_webdataset, progress=progress, cpu_limit=cpu_limit),
    }
    listing = readers[config.source](config)
    if listing.table.num_rows == 0:
        told = "; ".join([f"{listing.ignored:,} other files", *listing.warnings])
        raise DataError(
            f"{config.uri} holds no image that has a label ({told}); expected "
            "<root>/<class>/<image> for a folder, one row per image for a manifest"
            f"{_advice(config)}"
        )
    return listing


def _advice(config: DataConfig) -> str:
    """Return which source a folder without images of classes is, "" where there is no sign."""
    from jobs.data.shards import COMMIT

    if config.source != "folder":
        return ""
    keys = [entry.key for entry in open_store(config.uri).list_children()[1]]
    if COMMIT in keys:
        return "; it is a packed set: say source=packed (data.source=packed in training)"
    if any(key.endswith(".tar") for key in keys):
        return "; of tar files, say source=webdataset (data.source=webdataset in training)"
    return ""
