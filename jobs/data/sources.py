"""What a source lists: one row per image with its path, label and, where given, split.

`list_source` picks the reader by name. Nothing is decoded here: whether a listed file is an image
is found out by `index`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from jobs.data.config import DataConfig
from models.errors import DataError

SCHEMA = pa.schema([("path", pa.string()), ("label", pa.string()), ("split", pa.string())])
ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True)
class Listing:
    """All images that a source names. Columns of `table`: path (full), label, split or null."""

    table: pa.Table
    ignored: int = 0  # files that are not images by their name, or are hidden
    warnings: tuple[str, ...] = ()


@dataclass
class ListingBuilder:
    """Collects rows into Arrow chunks, so that millions of rows do not live as Python objects."""

    _chunks: list[pa.RecordBatch] = field(default_factory=list)
    _rows: list[tuple[str, str, str | None]] = field(default_factory=list)

    def add(self, path: str, label: str, split: str | None) -> None:
        """Append one image."""
        self._rows.append((path, label, split))
        if len(self._rows) >= ROWS_PER_CHUNK:
            self._flush()

    def build(self) -> pa.Table:
        """Return the table of all rows added."""
        self._flush()
        return pa.Table.from_batches(self._chunks, SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(values, pa.string()) for values in zip(*self._rows, strict=True)]
            self._chunks.append(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
            self._rows = []


def list_source(config: DataConfig) -> Listing:
    """List the source's images. Raises `DataError` for a set that makes no sense, `StorageError`
    when it cannot be reached.
    """
    from jobs.data.folder import list_folder
    from jobs.data.manifest import list_manifest

    readers: dict[str, Callable[[DataConfig], Listing]] = {
        "folder": list_folder,
        "manifest": list_manifest,
    }
    listing = readers[config.source](config)
    if listing.table.num_rows == 0:
        raise DataError(
            f"{config.uri} holds no image ({listing.ignored:,} other files); expected "
            "<root>/<class>/<image> for a folder, one row per image for a manifest"
        )
    return listing
