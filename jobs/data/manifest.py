"""A table that names the images: CSV, JSON lines or Parquet with a path and a label column.

A path is relative to the manifest's folder, or absolute, or a URI of any store. An optional split
column gives the split; a row without one is split by content. The file is read whole: it holds
names, not pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jobs.data.config import DataConfig
from jobs.data.locate import absolute
from jobs.data.sources import Listing, ListingBuilder
from jobs.data.split import SPLIT_ALIASES, SPLITS
from models.errors import DataError
from models.storage import open_store, split_uri

DEFAULT_SPLIT_COLUMN = "split"
DELIMITERS = (",", ";", "\t")


def list_manifest(config: DataConfig) -> Listing:
    """Read the manifest and return its rows with full paths."""
    folder, name = split_uri(config.uri)
    table = read_table(config.uri, name, open_store(folder).read(name))
    _require(config, table, config.path_column, "path_column")
    _require(config, table, config.label_column, "label_column")
    split_column = config.split_column
    if split_column is not None:
        _require(config, table, split_column, "split_column")
    elif DEFAULT_SPLIT_COLUMN in table.column_names:
        split_column = DEFAULT_SPLIT_COLUMN
        _refuse_twice(config, table, split_column)
    paths = texts(table, config.path_column)
    labels = texts(table, config.label_column)
    splits = texts(table, split_column) if split_column else [""] * table.num_rows
    _refuse_blank(config, config.path_column, paths)
    _refuse_blank(config, config.label_column, labels)
    builder = ListingBuilder()
    for row, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True), start=1):
        builder.add(absolute(folder, path), label, _split_of(config, row, split_column, split))
    return Listing(builder.build())


def read_table(uri: str, name: str, data: bytes) -> pa.Table:
    """Parse a manifest's bytes by the suffix of its name. Raises `DataError`."""
    suffix = name.lower().rpartition(".")[2]
    reader = READERS.get(suffix)
    if reader is None:
        known = ", ".join(f".{known}" for known in READERS)
        raise DataError(
            f"manifest {uri} has the suffix .{suffix}; expected one of {known} "
            "(for a folder of images set data.source=folder)"
        )
    try:
        return reader(data)
    except (pa.ArrowException, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"manifest {uri} cannot be read as .{suffix}: {first}") from error


def _read_csv(data: bytes) -> pa.Table:
    header = data[:65_536].split(b"\n", 1)[0].decode("utf-8-sig")
    delimiter = max(DELIMITERS, key=header.count)
    if not header.strip():
        raise ValueError("the first line is empty; expected the names of the columns")
    names = [cell.strip().strip('"') for cell in header.split(delimiter)]
    # Everything is text: the labels 01 and 1 are two labels, and "NA" may be a class.
    as_text = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return pa.csv.read_csv(io.BytesIO(data), parse_options=parsing, convert_options=as_text)


def _read_json_lines(data: bytes) -> pa.Table:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object but {type(row).__name__}")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {
        name: pa.array([_scalar(row.get(name)) for row in rows], pa.string()) for name in names
    }
    return pa.table(columns)


def _scalar(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _read_parquet(data: bytes) -> pa.Table:
    return pyarrow.parquet.read_table(io.BytesIO(data))


READERS: dict[str, Callable[[bytes], pa.Table]] = {
    "csv": _read_csv,
    "tsv": _read_csv,
    "jsonl": _read_json_lines,
    "ndjson": _read_json_lines,
    "parquet": _read_parquet,
}


def _require(config: DataConfig, table: pa.Table, column: str, setting: str) -> None:
    _refuse_twice(config, table, column)
    if column not in table.column_names:
        raise DataError(
            f"manifest {config.uri} has no column {column!r}; it has "
            f"{', '.join(map(repr, table.column_names))}; set data.{setting}"
        )


def _refuse_twice(config: DataConfig, table: pa.Table, column: str) -> None:
    if table.column_names.count(column) > 1:
        raise DataError(f"manifest {config.uri} has the column {column!r} more than once")


def texts(table: pa.Table, column: str) -> list[str]:
    """Return a column as trimmed text, "" where a cell is null."""
    values = table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return ["" if value is None else str(value).strip() for value in values.to_pylist()]


def _refuse_blank(config: DataConfig, column: str, values: list[str]) -> None:
    blank = [row for row, value in enumerate(values, start=1) if not value]
    if blank:
        shown = ", ".join(map(str, blank[:5])) + (", ..." if len(blank) > 5 else "")
        raise DataError(
            f"manifest {config.uri}: column {column!r} is blank in {len(blank):,} of "
            f"{len(values):,} rows (row {shown}, counted from 1 without the header); fill in or "
            "remove them"
        )


def _split_of(config: DataConfig, row: int, column: str | None, value: str) -> str | None:
    if not value:
        return None
    split = SPLIT_ALIASES.get(value.casefold())
    if split is None:
        raise DataError(
            f"manifest {config.uri}: column {column!r} says {value!r} in row {row}; expected one "
            f"of {', '.join(SPLITS)} (or val, valid), or nothing"
        )
    return split
