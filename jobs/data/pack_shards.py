"""Writing the shards of a packed set in Ray tasks, and reading them back.

A shard is there whole or not at all, and is noted when it is there: what is noted is not written
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import BufferedRandom
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray
from rich.console import Console

from cluster.environment import data_cpus
from jobs.console import bar
from jobs.data import places, shards
from jobs.data.chunks import Columns, Pace, run_chunks
from jobs.data.config import DataConfig
from jobs.data.pack_plan import MIB, PackOptions, Plan
from jobs.data.quarantine import Broken
from jobs.data.shrink import shrink
from jobs.lease import Lease
from models.decoders import ImageLimits, read_size
from models.errors import DataError, ImageError, NotFoundError, StorageError
from models.storage import Store, is_remote
from models.storage_errors import is_disk_full


@dataclass(frozen=True)
class Record:
    """What is noted of a shard when it is written. One without images has no file."""

    name: str
    rows: int
    num_bytes: int
    sha256: str
    broken: tuple[Broken, ...]
    fingerprint: str  # of the plan that it belongs to

    def dump(self) -> bytes:
        """Return the record as JSON."""
        return json.dumps(asdict(self)).encode()


def read_record(store: Store, number: int) -> Record:
    """Return what is noted of a shard."""
    noted = json.loads(store.child(shards.WORK).read(f"{shards.shard_name(number)}.json"))
    return Record(**{**noted, "broken": tuple(Broken(**one) for one in noted["broken"])})


def write_shards(
    config: DataConfig,
    options: PackOptions,
    store: Store,
    plan: Plan,
    lease: Lease,
    console: Console,
) -> int:
    """Write the shards that are not there yet; return how many were."""
    done = {entry.key for entry in store.child(shards.WORK).list_children()[1]}
    missing = [
        number
        for number in range(plan.num_shards)
        if f"{shards.shard_name(number)}.json" not in done
    ]
    sizes = np.diff(plan.bounds)
    task = partial(
        _write_shard,
        numbers=missing,
        rows=ray.put(plan.rows),
        bounds=plan.bounds,
        uri=store.uri,
        max_side=options.max_side,
        limits=config.limits,
        threads=config.read_threads,
        fingerprint=plan.fingerprint,
    )
    pace = Pace(chunk_bytes=MIB, cpu_limit=data_cpus())
    with bar(console, "packing", plan.rows.num_rows) as advance:
        advance(plan.rows.num_rows - int(sizes[missing].sum()))
        for columns in run_chunks(task, len(missing), pace):
            lease.check()
            for number in columns["number"].tolist():
                advance(int(sizes[number]))
    return plan.num_shards - len(missing)


def _write_shard(
    chunk: int,
    numbers: Sequence[int],
    rows: ray.ObjectRef[pa.Table],
    bounds: Sequence[int],
    uri: str,
    max_side: int | None,
    limits: ImageLimits,
    threads: int | None,
    fingerprint: str,
) -> Columns:
    """Run in a Ray task: read the images of one shard, write it, and note that it is there."""
    number = numbers[chunk]
    whole: pa.Table = ray.get(rows)
    mine = whole.slice(bounds[number], bounds[number + 1] - bounds[number])
    digests = mine["sha256"].to_pylist()

    def take(position: int, data: bytes | Exception) -> bytes | str:
        """Return the bytes to pack, or why there are none."""
        if isinstance(data, Exception):
            return str(data)
        if hashlib.sha256(data).hexdigest() != digests[position]:
            return "the image changed while the set was being packed"
        try:
            return data if max_side is None else shrink(data, max_side, limits)
        except ImageError as error:
            return str(error)

    taken: list[bytes | str] = places.read_each(
        places.places_of(mine), take, threads, limits=limits
    )
    kept = [position for position, one in enumerate(taken) if isinstance(one, bytes)]
    images = [one for one in taken if isinstance(one, bytes)]
    columns = _columns(mine.take(pa.array(kept, pa.int64())), images, _schema(whole))
    name = shards.shard_name(number)
    size, digest = (
        _store_shard(Store(uri, is_patient=True), name, columns, images) if kept else (0, "")
    )
    paths = mine["shown"].to_pylist()
    broken = tuple(
        Broken(path, one) for path, one in zip(paths, taken, strict=True) if isinstance(one, str)
    )
    record = Record(name, len(kept), size, digest, broken, fingerprint)
    work = Store(uri, is_patient=True).child(shards.WORK)
    work.write(f"{name}.json", record.dump())
    return {"number": np.array([number])}


def _schema(whole: pa.Table) -> pa.Schema:
    """Return the columns of every shard of a set: those that it says something in."""
    said = [field for field in shards.OPTIONAL if whole[field.name].null_count < len(whole)]
    return pa.schema([*shards.FIELDS, *said])


def _columns(rows: pa.Table, images: Sequence[bytes], schema: pa.Schema) -> pa.Table:
    """Return the columns of a shard beside its images; sizes and digests are of the bytes given."""
    sizes = [read_size(image) for image in images]
    old_sizes = zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True)
    computed = {
        "size": [len(image) for image in images],
        "path": rows["shown"].to_pylist(),
        "sha256": [hashlib.sha256(image).hexdigest() for image in images],
        "width": [width for _, width in sizes],
        "height": [height for height, _ in sizes],
        "box": [
            box and _scaled(box, old, new)
            for box, old, new in zip(rows["box"].to_pylist(), old_sizes, sizes, strict=True)
        ],
    }
    return pa.table(
        [
            pa.array(computed.get(field.name) or rows[field.name].to_pylist(), field.type)
            for field in schema
        ],
        schema=schema,
    )


def _scaled(box: Sequence[int], old: tuple[int, int], new: tuple[int, int]) -> list[int]:
    """Return the box in an image that went from one size (height, width) to another."""
    (old_height, old_width), (height, width) = old, new
    left, right = (side * width // old_width for side in box[0::2])
    top, bottom = (side * height // old_height for side in box[1::2])
    left, top = min(left, width - 1), min(top, height - 1)
    return [left, top, max(left + 1, right), max(top + 1, bottom)]


def _store_shard(
    store: Store, name: str, columns: pa.Table, images: Sequence[bytes]
) -> tuple[int, str]:
    """Write a shard so that it is there whole or not at all; return its size and digest."""
    # In the folder of notes the next run removes what a killed one has begun. Beside a bucket it is
    # a file without a name, of which nothing is left.
    begun = tempfile.gettempdir() if is_remote(store.uri) else store.child(shards.WORK).uri
    try:
        if is_remote(store.uri):
            with tempfile.TemporaryFile(dir=begun) as file:
                found = _write(file, columns, images)
                file.seek(0)
                store.upload(name, file)
            return found
        handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".tmp", dir=begun)
        try:
            with open(handle, "w+b") as file:
                found = _write(file, columns, images)
                os.fsync(file.fileno())
            os.chmod(path, 0o644)
            os.replace(path, Path(store.uri, name))
            return found
        finally:
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StorageError(
            f"the disk of {begun} is full; make room and run the same command again: what is "
            "packed is kept"
        ) from error


def _write(file: BufferedRandom, columns: pa.Table, images: Sequence[bytes]) -> tuple[int, str]:
    shards.write_shard(file, columns, images)
    file.flush()
    size = file.tell()
    file.seek(0)
    return size, hashlib.file_digest(file, "sha256").hexdigest()


def verify_shards(
    store: Store, plan: Plan, records: Sequence[Record], lease: Lease, console: Console
) -> pa.Table:
    """Read every shard back and compare every image; return the index of the set.

    Raises `StorageError` naming a shard that is not what was written; running again writes it anew.
    """
    for record in records:
        if record.fingerprint != plan.fingerprint:
            _forget(store, record)
            raise StorageError(
                f"{store.uri}/{record.name} was written by another run, with other settings; run "
                "the same command again to write it anew"
            )
    written = [record for record in records if record.rows]
    if not written:
        raise DataError(f"not one image could be packed into {store.uri}")
    task = partial(_verify_shard, records=ray.put(written), uri=store.uri)
    pace = Pace(chunk_bytes=4 * MIB, ahead=16, cpu_limit=data_cpus())
    tables: list[pa.Table] = []
    with bar(console, "verifying", sum(record.rows for record in written)) as advance:
        for columns in run_chunks(task, len(written), pace):
            lease.check()
            for data in columns["index"]:
                table = pa.ipc.open_stream(data).read_all()
                record = written[len(tables)]
                names = pa.array([record.name], pa.string())
                codes = pa.array(np.zeros(len(table), np.int32))
                name = pa.DictionaryArray.from_arrays(codes, names)
                tables.append(table.append_column("shard", name))
                advance(len(table))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _forget(store: Store, record: Record) -> None:
    """Let the next run write a shard anew."""
    store.child(shards.WORK).delete(f"{record.name}.json")


def _verify_shard(chunk: int, records: ray.ObjectRef[list[Record]], uri: str) -> Columns:
    """Run in a Ray task: read one shard back."""
    record, store = ray.get(records)[chunk], Store(uri, is_patient=True)
    try:
        table = _check_shard(store, record)
    except (NotFoundError, DataError) as error:
        _forget(store, record)
        raise StorageError(
            f"{uri}/{record.name} is not what was written ({error}); run the same command again to "
            "write it anew, and look after the disk or store if this happens again"
        ) from error
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"index": np.array([sink.getvalue().to_pybytes()], dtype=object)}


def _check_shard(store: Store, record: Record) -> pa.Table:
    """Return the columns of a shard, after comparing the file and every image with its digest."""
    whole = pa.py_buffer(store.read(record.name))
    if hashlib.sha256(whole).hexdigest() != record.sha256:
        raise DataError(f"{whole.size:,} bytes of another digest")
    table = shards.read_shard(pyarrow.parquet.ParquetFile(pa.BufferReader(whole)), record.name)
    view = memoryview(whole)
    for path, digest, offset, size in zip(
        *(table[name].to_pylist() for name in ("path", "sha256", "offset", "size")), strict=True
    ):
        if hashlib.sha256(view[offset : offset + size]).hexdigest() != digest:
            raise DataError(f"the image {path!r} is not where its row says")
    return table
