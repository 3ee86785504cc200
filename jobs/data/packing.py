"""Pack a set: examine it, write its images into shards in a mixed order, read everything back.

Each step notes what it has done below `DEST/.pack`, so that a run that was killed goes on where it
was and ends with the same bytes. `pack.json` is written last: without it nothing is a packed set.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import ray
from rich.console import Console

from cluster.environment import data_cpus
from jobs.console import bar
from jobs.data import places, shards
from jobs.data.chunks import Columns, Pace, run_chunks
from jobs.data.config import DataConfig
from jobs.data.index import Index
from jobs.data.order import shuffled_runs
from jobs.data.quarantine import Broken, check_share
from jobs.data.shrink import shrink
from jobs.data.tables import print_broken, read_index
from jobs.lease import Lease, acquire
from models.decoders import ImageLimits, read_size
from models.errors import ConfigError, DataError, ImageError, NotFoundError, StorageError
from models.preprocess import PreprocessSpec
from models.storage import Store, is_remote, normalise_uri, open_store, split_uri

PLAN = "plan.json"
WORK_INDEX = "index.arrow"
MIB = 1 << 20
SHARDS_AT_LEAST = 16  # of a set that is large enough: tasks and readers share them out
PIECE_ROWS = 512
SMALLEST_SHARD, LARGEST_SHARD = 8 * MIB, 128 * MIB
# What only says how fast a source is read.
PACE_SETTINGS = {"images_per_task", "read_threads", "prefetch_batches", "shuffle"}


@dataclass(frozen=True)
class PackOptions:
    """How a set is packed. `max_side` in pixels and `shard_bytes` may be None: images stay as they
    are, shards have 8 to 128 MiB.
    """

    uri: str
    max_side: int | None = None
    shard_bytes: int | None = None
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class Packed:
    """What a run came to. `about` is the content of `pack.json`."""

    uri: str
    about: dict[str, Any]
    digest: str  # of `pack.json`, which holds those of all files
    num_before: int = 0  # shards that an earlier run had written

    @property
    def num_images(self) -> int:
        """Return how many images were packed."""
        return int(self.about["num_images"])


def run_packing(config: DataConfig, options: PackOptions, console: Console) -> Packed:
    """Pack the source; go on with what an earlier run with the same settings left. Needs Ray.

    Raises `ConfigError` where the destination is taken, and the errors of reading and writing.
    """
    store = open_store(options.uri)
    _refuse_inside(config, store)
    fingerprint = fingerprint_of(config, options)
    with _held(store, options) as lease:
        finished = _look(store, fingerprint, options)
        if finished is not None:
            return finished
        plan = _plan(config, options, store, fingerprint, console)
        num_before = _write_shards(config, options, store, plan, console)
        records = [_record(store, number) for number in range(plan.num_shards)]
        broken = [*plan.broken, *(one for record in records for one in record.broken)]
        total = plan.rows.num_rows + len(plan.broken)
        check_share(broken, total, config.max_broken_share, config.uri)
        index = _verify(store, records, console)
        lease.check()
        packed = _commit(store, plan, records, broken, index)
    if broken:
        print_broken(broken, f"{store.uri}/{shards.QUARANTINE}", console)
    return Packed(store.uri, packed[0], packed[1], num_before)


def fingerprint_of(config: DataConfig, options: PackOptions) -> str:
    """Return a digest of all that decides what is packed, and how."""
    settings = config.model_dump(mode="json", exclude=PACE_SETTINGS)
    settings["uri"] = normalise_uri(config.uri)
    packing = [options.max_side, options.shard_bytes, options.seed]
    return hashlib.sha256(json.dumps([settings, packing], sort_keys=True).encode()).hexdigest()


def _refuse_inside(config: DataConfig, store: Store) -> None:
    source = normalise_uri(config.uri)
    if f"{store.uri}/".startswith(f"{source}/"):
        raise ConfigError(
            f"the destination {store.uri} lies in the source {source}, which would then hold other "
            "files than before; give a folder beside it"
        )


@contextmanager
def _held(store: Store, options: PackOptions) -> Iterator[Lease]:
    """Hold the right to write the destination."""
    work = store.child(shards.WORK)
    if not is_remote(store.uri):
        try:
            Path(work.uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {store.uri}: {error.strerror}") from error
    lease = acquire(work, "DEST")
    try:
        yield lease
    finally:
        is_done = not work.exists(PLAN)
        lease.release(forget=is_done)
        if is_done and not is_remote(work.uri):
            with suppress(OSError):  # another run may have begun in it
                Path(work.uri).rmdir()


def _look(store: Store, fingerprint: str, options: PackOptions) -> Packed | None:
    """Return what a finished run left, where it is the same; make room where that is asked for.

    Raises `ConfigError` where something else is in the destination.
    """
    work = store.child(shards.WORK)
    names = [entry.key for entry in store.list_children()[1]]
    if options.overwrite:
        _clear(store, names)
        names = [name for name in names if not _is_ours(name)]
    elif shards.COMMIT in names:
        data = store.read(shards.COMMIT)
        about = shards.load_commit(data, store.uri)
        if about.get("fingerprint") == fingerprint:
            return Packed(store.uri, about, hashlib.sha256(data).hexdigest(), len(about["shards"]))
        raise ConfigError(
            f"{store.uri} holds a packed set already, of {about.get('source')!r} or with other "
            "settings; give another DEST, or --overwrite"
        )
    elif work.exists(PLAN):
        if json.loads(work.read(PLAN))["fingerprint"] != fingerprint:
            raise ConfigError(
                f"{store.uri} holds an unfinished packing of another source or with other "
                "settings; finish it with those, or begin anew with --overwrite"
            )
        return None
    if names:
        raise ConfigError(
            f"{store.uri} is not empty: it holds {names[0]!r}"
            f"{f' and {len(names) - 1:,} other files' if len(names) > 1 else ''}; give an empty or "
            "new folder"
        )
    return None


def _is_ours(name: str) -> bool:
    others = (shards.COMMIT, shards.INDEX, shards.QUARANTINE)
    return name in others or (name.startswith("part-") and name.endswith(".parquet"))


def _clear(store: Store, names: Sequence[str]) -> None:
    """Remove a set, its commit first: what is left of it is then no packed set."""
    for name in sorted(filter(_is_ours, names), key=lambda name: name != shards.COMMIT):
        store.delete(name)
    _clear_work(store.child(shards.WORK))


def _clear_work(work: Store) -> None:
    """Remove all notes but the lease, the plan first."""
    names = [entry.key for entry in work.list_children()[1] if not entry.key.startswith("lock-")]
    for name in sorted(names, key=lambda name: name != PLAN):
        work.delete(name)


@dataclass(frozen=True)
class Plan:
    """Which images go into which shard: shard n holds rows `bounds[n]` to `bounds[n + 1]`.

    `rows` has the columns of an index, but labels by name and paths from the root of the source.
    """

    rows: pa.Table
    bounds: tuple[int, ...]
    classes: tuple[str, ...]
    broken: tuple[Broken, ...]
    fingerprint: str
    source: str

    @property
    def num_shards(self) -> int:
        """Return the number of shards."""
        return len(self.bounds) - 1


def _plan(
    config: DataConfig, options: PackOptions, store: Store, fingerprint: str, console: Console
) -> Plan:
    """Return the plan of an earlier run, or examine the source and make one."""
    work = store.child(shards.WORK)
    if work.exists(PLAN):
        noted = json.loads(work.read(PLAN))
        console.print(f"going on with the packing of {noted['source']}", highlight=False)
        return Plan(
            rows=shards.load_index(work.read(WORK_INDEX), work.uri, noted["rows"]),
            bounds=tuple(noted["bounds"]),
            classes=tuple(noted["classes"]),
            broken=tuple(Broken(*one) for one in noted["broken"]),
            fingerprint=fingerprint,
            source=noted["source"],
        )
    index = read_index(config, PreprocessSpec(), console, cpu_limit=data_cpus())
    rows = _mixed(index, config, options.seed)
    plan = Plan(
        rows=rows,
        bounds=cut(rows["size"].to_numpy(), options.shard_bytes),
        classes=index.classes,
        broken=index.quarantine,
        fingerprint=fingerprint,
        source=normalise_uri(config.uri),
    )
    data = shards.dump_index(rows)
    work.write(WORK_INDEX, data)
    noted = {
        "fingerprint": fingerprint,
        "source": plan.source,
        "rows": hashlib.sha256(data).hexdigest(),
        "bounds": plan.bounds,
        "classes": plan.classes,
        "broken": [(one.path, one.reason) for one in plan.broken],
    }
    work.write(PLAN, json.dumps(noted).encode())
    return plan


def _mixed(index: Index, config: DataConfig, seed: int) -> pa.Table:
    """Return the rows in a random order of the seed: what lies together is then any images.

    Of Parquet that is read by row groups, pieces of `PIECE_ROWS` stay together, mixed within four.
    """
    num_rows = index.table.num_rows
    order = np.random.default_rng(seed).permutation(num_rows)
    offsets = index.table["offset"].fill_null(0).to_numpy()
    if num_rows and (offsets < 0).all():
        order = shuffled_runs(np.arange(num_rows), 0, seed, run=PIECE_ROWS, mix=4 * PIECE_ROWS)
    table = index.table.take(pa.array(order))
    names = pa.array(index.classes, pa.string()).take(table["label"].combine_chunks())
    table = table.set_column(table.column_names.index("label"), "label", names)
    root = normalise_uri(config.uri)
    root = split_uri(root)[0] if config.source == "manifest" else root
    shown = [path.removeprefix(f"{root}/") for path in table["path"].to_pylist()]
    return table.append_column("shown", pa.array(shown, pa.string())).combine_chunks()


def cut(sizes: npt.NDArray[np.int64], shard_bytes: int | None) -> tuple[int, ...]:
    """Return where shards begin, and the end: each holds about `shard_bytes` of images.

    By default so many that a set of 128 MiB or more has at least 16.
    """
    total = int(sizes.sum())
    if shard_bytes is None:
        shard_bytes = min(max(total // SHARDS_AT_LEAST, SMALLEST_SHARD), LARGEST_SHARD)
    number = (np.cumsum(sizes) - sizes) // shard_bytes
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return (*starts.tolist(), len(sizes))


@dataclass(frozen=True)
class Record:
    """What is noted of a shard when it is written. One without images has no file."""

    name: str
    rows: int
    num_bytes: int
    sha256: str
    broken: tuple[Broken, ...]

    def dump(self) -> bytes:
        """Return the record as JSON."""
        return json.dumps(asdict(self)).encode()


def _record(store: Store, number: int) -> Record:
    noted = json.loads(store.child(shards.WORK).read(f"{shards.shard_name(number)}.json"))
    return Record(**{**noted, "broken": tuple(Broken(**one) for one in noted["broken"])})


def _write_shards(
    config: DataConfig, options: PackOptions, store: Store, plan: Plan, console: Console
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
    )
    pace = Pace(chunk_bytes=MIB, cpu_limit=data_cpus())
    with bar(console, "packing", plan.rows.num_rows) as advance:
        advance(plan.rows.num_rows - int(sizes[missing].sum()))
        for columns in run_chunks(task, len(missing), pace):
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

    taken: list[bytes | str] = places.read_each(places.places_of(mine), take, threads)
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
    record = Record(name, len(kept), size, digest, broken)
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
    old_widths = rows["width"].to_pylist()
    computed = {
        "size": [len(image) for image in images],
        "path": rows["shown"].to_pylist(),
        "sha256": [hashlib.sha256(image).hexdigest() for image in images],
        "width": [width for _, width in sizes],
        "height": [height for height, _ in sizes],
        "box": [
            box and _scaled(box, width / old)
            for box, (_, width), old in zip(rows["box"].to_pylist(), sizes, old_widths, strict=True)
        ],
    }
    return pa.table(
        [
            pa.array(computed.get(field.name) or rows[field.name].to_pylist(), field.type)
            for field in schema
        ],
        schema=schema,
    )


def _scaled(box: Sequence[int], factor: float) -> list[int]:
    left, top, right, bottom = (int(side * factor) for side in box)
    return [left, top, max(left + 1, right), max(top + 1, bottom)]


def _store_shard(
    store: Store, name: str, columns: pa.Table, images: Sequence[bytes]
) -> tuple[int, str]:
    """Write a shard so that it is there whole or not at all; return its size and digest."""
    folder = None if is_remote(store.uri) else store.child(shards.WORK).uri
    handle, text = tempfile.mkstemp(prefix=f"{name}-", suffix=".tmp", dir=folder)
    os.close(handle)
    path = Path(text)
    try:
        shards.write_shard(path, columns, images)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        size = path.stat().st_size
        if is_remote(store.uri):
            store.upload(name, path)
        else:
            path.chmod(0o644)
            path.replace(Path(store.uri, name))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
            raise
        raise StorageError(
            f"the disk of {path.parent} is full; make room and run the same command again: what is "
            "packed is kept"
        ) from error
    finally:
        path.unlink(missing_ok=True)
    return size, digest


def _verify(store: Store, records: Sequence[Record], console: Console) -> pa.Table:
    """Read every shard back and compare every image; return the index of the set.

    Raises `StorageError` naming a shard that is not what was written; running again writes it anew.
    """
    written = [record for record in records if record.rows]
    if not written:
        raise DataError(f"not one image could be packed into {store.uri}")
    task = partial(_verify_shard, records=written, uri=store.uri)
    pace = Pace(chunk_bytes=4 * MIB, ahead=16, cpu_limit=data_cpus())
    tables: list[pa.Table] = []
    with bar(console, "verifying", sum(record.rows for record in written)) as advance:
        for columns in run_chunks(task, len(written), pace):
            for data in columns["index"]:
                table = pa.ipc.open_stream(data).read_all()
                record = written[len(tables)]
                names = pa.array([record.name], pa.string())
                codes = pa.array(np.zeros(len(table), np.int32))
                name = pa.DictionaryArray.from_arrays(codes, names)
                tables.append(table.append_column("shard", name))
                advance(len(table))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _verify_shard(chunk: int, records: Sequence[Record], uri: str) -> Columns:
    """Run in a Ray task: read one shard back."""
    record, store = records[chunk], Store(uri, is_patient=True)
    try:
        table = _check_shard(store, record)
    except (NotFoundError, DataError) as error:
        store.child(shards.WORK).delete(f"{record.name}.json")
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


def _commit(
    store: Store,
    plan: Plan,
    records: Sequence[Record],
    broken: Sequence[Broken],
    index: pa.Table,
) -> tuple[dict[str, Any], str]:
    """Write the index, the quarantine and, last, `pack.json`; return it and its digest."""
    data = shards.dump_index(index)
    store.write(shards.INDEX, data)
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in broken]
    store.write(shards.QUARANTINE, "".join(lines).encode())
    about = {
        "fingerprint": plan.fingerprint,
        "source": plan.source,
        "classes": list(plan.classes),
        "num_images": len(index),
        "num_quarantined": len(broken),
        "counts": _counts(index),
        "index": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "shards": [
            {
                "name": record.name,
                "rows": record.rows,
                "bytes": record.num_bytes,
                "sha256": record.sha256,
            }
            for record in records
            if record.rows
        ],
    }
    commit = shards.dump_commit(about)
    store.write(shards.COMMIT, commit)
    _clear_work(store.child(shards.WORK))
    return about, hashlib.sha256(commit).hexdigest()


def _counts(index: pa.Table) -> dict[str, dict[str, int]]:
    """Return the images per class and split."""
    counted = index.group_by(["label", "split"]).aggregate([([], "count_all")])
    counts: dict[str, dict[str, int]] = {}
    for row in counted.sort_by([("label", "ascending"), ("split", "ascending")]).to_pylist():
        counts.setdefault(row["label"], {})[row["split"]] = row["count_all"]
    return counts
