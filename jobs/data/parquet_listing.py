"""Parquet files with images that others wrote, as Hugging Face does: a column of encoded images,
or of structs with `bytes` and `path`, and a column of labels.

Their images lie compressed or between other pages, so one is read with its whole row group: good
enough to pack them, slow to train from in random order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from jobs.data.config import DataConfig
from jobs.data.manifest import PARSERS, is_plain, refuse_type, texts
from jobs.data.parquet_rows import IMAGE_COLUMN, open_parquet
from jobs.data.sources import SCHEMA, Listing, complete
from jobs.data.split import split_of_name
from models.errors import DataError
from models.storage import Entry


def list_parquet(config: DataConfig, root: str, files: Sequence[Entry]) -> Listing:
    """Return the rows of Parquet files as images, by their place `(file, row)`.

    Raises `DataError` naming the file and column that do not fit.
    """
    batches = [
        batch
        for entry in files
        for batch in _list_file(config, f"{root}/{entry.key}", split_of_name(entry.key))
    ]
    table = pa.Table.from_batches(batches, SCHEMA).unify_dictionaries()
    warnings = (
        f"{root} holds Parquet that jobs.data.pack did not write: an image is read with its whole "
        "row group; pack it before you train on it more than once",
    )
    return Listing(table, warnings=warnings)


def _list_file(config: DataConfig, uri: str, split: str | None) -> Iterator[pa.RecordBatch]:
    with open_parquet(uri) as file:
        schema = file.schema_arrow
        _check_image(uri, schema)
        wanted = {"label": config.label_column, **{name: _column(config, name) for name in PARSERS}}
        present = {name: column for name, column in wanted.items() if column in schema.names}
        missing = [
            column
            for name, column in wanted.items()
            if name not in present and (name == "label" or getattr(config, f"{name}_column"))
        ]
        if missing:
            raise DataError(
                f"{uri} has no column {missing[0]!r}; it has "
                f"{', '.join(map(repr, schema.names))}; set data.label_column and the like"
            )
        refuse_type(uri, schema, config.label_column, "text or numbers", is_plain)
        names = _class_names(schema, config.label_column)
        columns = list(dict.fromkeys(present.values()))
        first = 0
        for batch in file.iter_batches(batch_size=65_536, columns=columns):
            yield _rows(uri, batch, first, present, names, split)
            first += batch.num_rows


def _column(config: DataConfig, name: str) -> str:
    column: str | None = getattr(config, f"{name}_column")
    return column or name


def _check_image(uri: str, schema: pa.Schema) -> None:
    found = schema.field(IMAGE_COLUMN).type if IMAGE_COLUMN in schema.names else None
    if found is not None and pa.types.is_struct(found) and "bytes" in [f.name for f in found]:
        found = found.field("bytes").type
    if found is None or not (pa.types.is_binary(found) or pa.types.is_large_binary(found)):
        raise DataError(
            f"{uri} has {'no column' if found is None else f'a column of type {found} called'} "
            f"{IMAGE_COLUMN!r}; expected the bytes of encoded images, or structs with bytes and "
            "path"
        )


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the names of numbered labels, where the datasets library left them in the file."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]


def _rows(
    uri: str,
    batch: pa.RecordBatch,
    first: int,
    present: dict[str, str],
    names: list[str] | None,
    split: str | None,
) -> pa.RecordBatch:
    count, whole = batch.num_rows, pa.Table.from_batches([batch])
    columns: dict[str, Any] = {
        # Sorted by their paths, rows keep the order that they have in the file.
        "path": [f"{uri}#{row:08}" for row in range(first, first + count)],
        "container": [uri] * count,
        "offset": [-1 - row for row in range(first, first + count)],
        "split": [split] * count,
    }
    for name, column in present.items():
        parse: Callable[[str], Any] = PARSERS.get(name) or partial(_label, names)
        columns[name] = [
            _parsed(uri, column, first + position, text, parse)
            for position, text in enumerate(texts(whole, column))
        ]
    return complete(columns, count)


def _label(names: list[str] | None, text: str) -> str:
    if names is None:
        return text
    number = int(text)
    if not 0 <= number < len(names):
        raise ValueError(f"a number below {len(names)}, as the file names so many classes")
    return names[number]


def _parsed(uri: str, column: str, row: int, text: str, parse: Callable[[str], Any]) -> Any:
    if not text:
        if parse in PARSERS.values():
            return None
        raise DataError(f"{uri}: column {column!r} is blank in row {row:,}, counted from 0")
    try:
        return parse(text)
    except ValueError as error:
        raise DataError(
            f"{uri}: column {column!r} says {text!r} in row {row:,}; expected {error}"
        ) from None
