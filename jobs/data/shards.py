"""The files of a packed set: Parquet that anything can read, laid out so that we need not.

The column `image` is stored as it is: not compressed, in one page per row group, without nulls. So
the bytes of an image are one range of the file, found from the footer and the column `size`; it is
read by that range, in any order, and the rest of the file is not touched.

    DEST/part-00000.parquet ...   the shards
    DEST/index.arrow              all columns but `image`, and where each image lies
    DEST/quarantine.jsonl         what was left out, and why
    DEST/pack.json                written last: what the set holds, with the digest of each file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from jobs.data.sources import BOX
from models.errors import DataError

FORMAT = "sightline.pack/1"
COMMIT = "pack.json"
INDEX = "index.arrow"
QUARANTINE = "quarantine.jsonl"
WORK = ".pack"  # what an unfinished pack has noted

IMAGE = pa.field("image", pa.binary(), nullable=False)
FIELDS = (
    pa.field("size", pa.int64()),  # bytes of the image
    pa.field("label", pa.string()),
    pa.field("path", pa.string()),  # in the source
    pa.field("sha256", pa.string()),  # of the bytes here
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("split", pa.string()),
)
OPTIONAL = (  # written where the source gives one to any image
    pa.field("group", pa.string()),
    pa.field("weight", pa.float32()),
    pa.field("box", BOX),
)
GROUP_BYTES = 16 << 20  # of images in a row group
GROUP_ROWS = 4096
MAX_HEADER = 256  # bytes of a page's header; it has some 20


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"part-{number:05}.parquet"


def write_shard(file: Path | BinaryIO, columns: pa.Table, images: Sequence[bytes]) -> None:
    """Write one shard: the images with the columns of `FIELDS` and those given of `OPTIONAL`."""
    schema = pa.schema([IMAGE, *columns.schema])
    others = [name for name in columns.column_names if name != "box"]
    with pyarrow.parquet.ParquetWriter(
        file,
        schema,
        compression={"image": "none", **dict.fromkeys(_leaves(columns.schema), "zstd")},
        use_dictionary=[name for name in ("label", "split", "group") if name in others],
        write_statistics=others,
        data_page_size=1 << 30,
        data_page_version="1.0",
        write_batch_size=GROUP_ROWS,
    ) as writer:
        for start, end in _row_groups([len(image) for image in images]):
            batch = pa.array(images[start:end], IMAGE.type)
            part = columns.slice(start, end - start)
            writer.write_table(
                pa.Table.from_arrays([batch, *part.columns], schema=schema),
                row_group_size=end - start,
            )


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the columns as Parquet names them: a list has its values one level down."""
    return [
        f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name
        for field in schema
    ]


def _row_groups(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    start, collected = 0, 0
    for position, size in enumerate(sizes):
        if position > start and (collected + size > GROUP_BYTES or position - start == GROUP_ROWS):
            yield start, position
            start, collected = position, 0
        collected += size
    if len(sizes) > start:
        yield start, len(sizes)


def read_shard(file: pyarrow.parquet.ParquetFile, name: str) -> pa.Table:
    """Return the columns of a shard but `image`, and `offset`, where each image begins.

    Raises `DataError` for a file that `write_shard` did not write.
    """
    table = file.read(columns=[field.name for field in file.schema_arrow if field.name != "image"])
    missing = [field.name for field in FIELDS if field.name not in table.column_names]
    if missing or "image" not in file.schema_arrow.names:
        raise DataError(
            f"{name} is Parquet, but not of jobs.data.pack: it has no column "
            f"{', '.join(map(repr, missing or ['image']))}"
        )
    sizes = table["size"].to_numpy()
    return table.append_column("offset", pa.array(_offsets(file.metadata, sizes, name)))


def _offsets(
    metadata: pyarrow.parquet.FileMetaData, sizes: npt.NDArray[np.int64], name: str
) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(sizes), dtype=np.int64)
    row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        column = next(
            column
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema == "image"
        )
        mine = sizes[row : row + group.num_rows]
        ends = np.cumsum(mine + 4)  # each value has its length before it (Parquet: PLAIN)
        header = column.total_compressed_size - int(ends[-1]) if len(mine) else 0
        if column.compression != "UNCOMPRESSED" or not 0 < header < MAX_HEADER:
            raise DataError(
                f"{name} is not laid out as jobs.data.pack does it (its images are compressed, or "
                "in several pages); pack it again from its source"
            )
        first = column.data_page_offset + header
        offsets[row : row + group.num_rows] = first + ends - mine
        row += group.num_rows
    return offsets


def dump_index(table: pa.Table) -> bytes:
    """Return the index of a set as an Arrow file."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def load_index(data: bytes, uri: str, digest: str) -> pa.Table:
    """Read the index of a set. Raises `DataError` where it is not the one that was written."""
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{uri} is damaged: its digest is not the one that was noted of it")
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def dump_commit(
    about: Mapping[str, Any],
    *,
    classes: Sequence[str],
    index: bytes,
    shards: Sequence[Mapping[str, Any]],
) -> bytes:
    """Return the last file of a set: what `load_commit` asks for, and whatever else is told."""
    content = {
        "format": FORMAT,
        **about,
        "classes": list(classes),
        "index": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "shards": list(shards),
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def load_commit(data: bytes, uri: str) -> dict[str, Any]:
    """Read the last file of a set. Raises `DataError`."""
    try:
        about: Any = json.loads(data)
    except ValueError as error:
        raise DataError(f"{uri}/{COMMIT} is damaged: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise DataError(
            f"{uri}/{COMMIT} has the format {found!r}; this version of Sightline reads {FORMAT!r}"
        )
    missing = [name for name in ("classes", "index", "shards") if name not in about]
    if missing:
        raise DataError(
            f"{uri}/{COMMIT} is damaged: it lacks {', '.join(missing)}; copy the set again, or "
            "pack it again"
        )
    return about
