"""A table that names the images: CSV, JSON lines or Parquet with a path and a label column.

A path is relative to the manifest's folder, or absolute, or a URI of any store. Optional columns
give the split, the group that must stay on one side of it, a weight in training, and the box to cut
out. The file is read whole: it holds names, not pixels.
"""

from __future__ import annotations

import codecs
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jobs.data.config import DataConfig
from jobs.data.locate import absolute
from jobs.data.sources import Listing, ListingBuilder, Row
from jobs.data.split import SPLIT_ALIASES, SPLITS
from models.decoders import MAX_SIDE
from models.errors import DataError
from models.storage import is_remote, normalise_uri, open_store, split_uri

DELIMITERS = (",", ";", "\t")


def list_manifest(config: DataConfig) -> Listing:
    """Read the manifest and return its rows with full paths."""
    folder, name = split_uri(config.uri)
    if not is_remote(config.uri) and Path(normalise_uri(config.uri)).is_dir():
        raise DataError(
            f"manifest {config.uri} is a folder; name the file in it, or set data.source: folder "
            "for a folder of images"
        )
    table = read_table(config.uri, name, open_store(folder).read(name))
    _require(config, table, config.path_column, "path_column")
    _require(config, table, config.label_column, "label_column")
    what = f"manifest {config.uri}"
    refuse_type(what, table.schema, config.path_column, "text", _is_text)
    refuse_type(what, table.schema, config.label_column, "text or numbers", is_plain)
    paths = texts(table, config.path_column)
    labels = texts(table, config.label_column)
    _refuse_blank(config, config.path_column, paths)
    _refuse_blank(config, config.label_column, labels)
    given: dict[str, list[Any]] = {
        name: [
            _parsed(config, name, column, row, value)
            for row, value in enumerate(texts(table, column), start=1)
        ]
        for name in PARSERS
        if (column := _optional(config, table, name)) is not None
    }
    builder = ListingBuilder()
    paths = [absolute(folder, path) for path in paths]
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        cells = {name: values[row] for name, values in given.items()}
        builder.add(Row(path, label, **cells))
    return Listing(builder.build(), warnings=tuple(_warn_of_repeats(paths, given.get("box"))))


def _warn_of_repeats(paths: Sequence[str], boxes: Sequence[Any] | None) -> Iterator[str]:
    seen = Counter(zip(paths, boxes or [None] * len(paths), strict=True))
    repeats = sum(count - 1 for count in seen.values())
    if repeats:
        (path, _), _ = seen.most_common(1)[0]
        yield (
            f"{repeats:,} rows name a file that another row names, for example {path}: each counts "
            "as an image of its own"
        )


def _optional(config: DataConfig, table: pa.Table, name: str) -> str | None:
    """Return the column of something that a manifest may or may not say."""
    column: str | None = getattr(config, f"{name}_column")
    if column is not None:
        _require(config, table, column, f"{name}_column")
        return column
    if name not in table.column_names:
        return None
    refuse_twice(table, name, f"manifest {config.uri}")
    return name


def _parsed(config: DataConfig, name: str, column: str, row: int, value: str) -> Any:
    if not value:
        return None
    try:
        return PARSERS[name](value)
    except ValueError as error:
        raise DataError(
            f"manifest {config.uri}: column {column!r} says {value!r} in row {row}; expected "
            f"{error}, or nothing"
        ) from None


def read_table(uri: str, name: str, data: bytes, what: str = "manifest") -> pa.Table:
    """Parse a table's bytes by the suffix of its name. Raises `DataError`, calling it `what`."""
    suffix = name.lower().rpartition(".")[2]
    reader = READERS.get(suffix)
    if reader is None:
        known = ", ".join(f".{known}" for known in READERS)
        raise DataError(
            f"{what} {uri} has the suffix .{suffix}; expected one of {known}"
            + (" (for a folder of images set data.source=folder)" if what == "manifest" else "")
        )
    try:
        return reader(data)
    except (pa.ArrowException, ValueError, OSError) as error:  # OSError: a page that is damaged
        first = str(error).splitlines()[0]
        is_encoding = isinstance(error, UnicodeDecodeError) or "UTF8" in first
        advice = "; save it as UTF-8" if is_encoding else ""
        raise DataError(f"{what} {uri} cannot be read as .{suffix}: {first}{advice}") from error


def _read_csv(data: bytes) -> pa.Table:
    # Lines end with \r alone where a Mac of long ago, or Excel's "CSV (Macintosh)", wrote them.
    header = re.split(rb"[\r\n]", data[:65_536], maxsplit=1)[0].decode("utf-8-sig")
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
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object but {type(row).__name__}")
        for name, value in row.items():
            is_numbers = isinstance(value, list) and all(map(_is_number, value))  # as of a box
            if isinstance(value, (dict, list)) and not is_numbers:
                raise ValueError(
                    f"line {number}: {name!r} is {orjson.dumps(value).decode()}; expected text, a "
                    "number, true or false"
                )
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {
        name: pa.array([_scalar(row.get(name)) for row in rows], pa.string()) for name in names
    }
    return pa.table(columns)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    refuse_twice(table, column, f"manifest {config.uri}")
    if column not in table.column_names:
        raise DataError(
            f"manifest {config.uri} has no column {column!r}; it has "
            f"{', '.join(map(repr, table.column_names))}; set data.{setting}"
        )


def refuse_twice(table: pa.Table, column: str, what: str) -> None:
    """Raise `DataError`, beginning with `what`, for a column that can mean two."""
    if table.column_names.count(column) > 1:
        raise DataError(f"{what} has the column {column!r} more than once")


def refuse_type(
    what: str,
    schema: pa.Schema,
    column: str,
    expected: str,
    is_right: Callable[[pa.DataType], bool],
) -> None:
    """Raise `DataError`, beginning with `what`, for a Parquet column of a type that only looks like
    text when printed.
    """
    found = schema.field(column).type
    value = found.value_type if pa.types.is_dictionary(found) else found
    if not (is_right(value) or pa.types.is_null(value)):
        raise DataError(f"{what}: column {column!r} is of type {found}; expected {expected}")


def _is_text(found: pa.DataType) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def is_plain(found: pa.DataType) -> bool:
    """Say whether values of a type can be labels: text, numbers, true and false."""
    numbers = pa.types.is_integer(found) or pa.types.is_floating(found)
    return _is_text(found) or bool(numbers or pa.types.is_boolean(found))


def texts(table: pa.Table, column: str) -> list[str]:
    """Return a column as trimmed text, "" where a cell is null."""
    values = table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return [
        "" if value is None or value != value else str(value).strip()  # NaN is no value, either
        for value in values.to_pylist()
    ]


def _refuse_blank(config: DataConfig, column: str, values: list[str]) -> None:
    blank = [row for row, value in enumerate(values, start=1) if not value]
    if blank:
        shown = ", ".join(map(str, blank[:5])) + (", ..." if len(blank) > 5 else "")
        raise DataError(
            f"manifest {config.uri}: column {column!r} is blank in {len(blank):,} of "
            f"{len(values):,} rows (row {shown}, counted from 1 without the header); fill in or "
            "remove them"
        )


def parse_split(value: str) -> str:
    """Return the split that a cell names. Raises `ValueError` saying what is expected."""
    split = SPLIT_ALIASES.get(value.casefold())
    if split is None:
        raise ValueError(f"one of {', '.join(SPLITS)} (or val, valid)")
    return split


def parse_weight(value: str) -> float:
    """Return a weight. Raises `ValueError` saying what is expected."""
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError("a number that is not negative")
    return weight


def parse_box(value: str) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom. Raises `ValueError` saying what is expected."""
    numbers = value.strip("[]() ").replace(",", " ").split()
    try:
        left, top, right, bottom = (int(float(number)) for number in numbers)
    except (ValueError, OverflowError):
        left = top = right = bottom = 0
    if not (0 <= left < right <= MAX_SIDE and 0 <= top < bottom <= MAX_SIDE):
        raise ValueError("four numbers in pixels: left, top, right, bottom, as in '10 20 110 220'")
    return left, top, right, bottom


PARSERS: dict[str, Callable[[str], Any]] = {
    "split": parse_split,
    "group": str,
    "weight": parse_weight,
    "box": parse_box,
}
