"""Images in other files: small packed sets and tar files, as `jobs.data.pack` and WebDataset write
them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.data.shards import (
    COMMIT,
    FIELDS,
    INDEX,
    dump_commit,
    dump_index,
    read_shard,
    shard_name,
    write_shard,
)
from jobs.data.sources import BOX


def write_packed(
    folder: Path,
    images: Mapping[str, bytes],
    num_shards: int = 2,
    box: tuple[int, int, int, int] | None = None,
) -> None:
    """Write a packed set; the label of `good/a.jpg` is `good`."""
    folder.mkdir(parents=True)
    names = list(images)
    parts: list[pa.Table] = []
    shards: list[dict[str, object]] = []
    step = -(-len(names) // num_shards)
    for number, start in enumerate(range(0, len(names), step)):
        mine = names[start : start + step]
        digests = [hashlib.sha256(images[name]).hexdigest() for name in mine]
        columns: dict[str, list[object]] = {
            "size": [len(images[name]) for name in mine],
            "label": [name.partition("/")[0] for name in mine],
            "path": [*mine],
            "sha256": [*digests],
            "width": [24] * len(mine),
            "height": [24] * len(mine),
            "split": ["train"] * len(mine),
        }
        fields = list(FIELDS)
        if box is not None:
            columns["box"] = [box] * len(mine)
            fields.append(pa.field("box", BOX))
        schema = pa.schema(fields)
        path = folder / shard_name(number)
        write_shard(path, pa.table(columns, schema=schema), [images[name] for name in mine])
        with pq.ParquetFile(path) as file:
            table = read_shard(file, path.name)
        shard = pa.array([path.name] * len(mine)).dictionary_encode()
        parts.append(table.append_column("shard", shard))
        shards.append({"name": path.name, "bytes": path.stat().st_size})
    index = dump_index(pa.concat_tables(parts).unify_dictionaries())
    (folder / INDEX).write_bytes(index)
    classes = sorted({name.partition("/")[0] for name in names})
    commit = dump_commit({}, classes=classes, index=index, shards=shards)
    (folder / COMMIT).write_bytes(commit)


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """Return a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tars(folder: Path, images: Mapping[str, bytes], num_shards: int = 2) -> None:
    """Write tar files whose samples have their label as text, as JSON, or none, in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(images)
    step = -(-len(names) // num_shards)
    for number, start in enumerate(range(0, len(names), step)):
        members: dict[str, bytes] = {}
        for position, name in enumerate(names[start : start + step]):
            label, _, base = name.partition("/")
            key = f"{label}-{base.partition('.')[0]}"
            if position % 3 == 0:
                members[f"{key}.cls"] = label.encode()
            members[f"{key}.jpg"] = images[name]
            if position % 3 == 1:
                members[f"{key}.json"] = json.dumps({"label": label}).encode()
        (folder / f"{number:03}.tar").write_bytes(tar_bytes(members))
