"""A set that `jobs.data.pack` wrote: listed from its index by one request, whatever its size.

Its images were hashed and decoded when it was packed, so they are not examined again. Other Parquet
files with images are listed row by row (`parquet_listing`).
"""

from __future__ import annotations

import pyarrow as pa

from jobs.data import places
from jobs.data.config import DataConfig
from jobs.data.parquet_listing import list_parquet
from jobs.data.shards import COMMIT, INDEX, WORK, load_commit, load_index
from jobs.data.sources import SCHEMA, Listing
from jobs.data.walk import is_hidden
from models.errors import DataError, NotFoundError
from models.storage import Store, open_store


def list_packed(config: DataConfig) -> Listing:
    """Return the images of a packed set, after a look whether its shards are all there."""
    store = open_store(config.uri)
    try:
        about = load_commit(store.read(COMMIT), store.uri)
    except NotFoundError as error:
        return _list_others(config, store, error)
    store = store.patient()  # it has answered
    _check_shards(store, about["shards"])
    index = load_index(store.read(INDEX), f"{store.uri}/{INDEX}", about["index"]["sha256"])
    table = pa.table(
        [_column(field, index, store.uri) for field in SCHEMA], schema=SCHEMA
    ).combine_chunks()
    return Listing(table, classes=tuple(about["classes"]))


def _column(field: pa.Field, index: pa.Table, uri: str) -> pa.ChunkedArray | pa.Array:
    if field.name == "container":
        shards = index["shard"].cast(places.CONTAINER).combine_chunks()
        full = pa.array([f"{uri}/{name}" for name in shards.dictionary.to_pylist()], pa.string())
        return pa.DictionaryArray.from_arrays(shards.indices, full)
    if field.name == "reason":
        return pa.array([""] * len(index), field.type)
    if field.name in index.column_names:
        return index[field.name].cast(field.type)
    return pa.nulls(len(index), field.type)


def _check_shards(store: Store, shards: list[dict[str, object]]) -> None:
    """Raise `DataError` naming a shard that is missing or has another size than when packed."""
    found = {entry.key: entry.size for entry in store.list_children()[1]}
    for shard in shards:
        name, size = str(shard["name"]), shard["bytes"]
        if found.get(name) != size:
            state = f"has {found[name]:,} bytes" if name in found else "is missing"
            raise DataError(
                f"{store.uri}/{name} {state}; {COMMIT} says {size:,} bytes. Copy the set again, or "
                "pack it again"
            )


def _list_others(config: DataConfig, store: Store, missing: NotFoundError) -> Listing:
    """Return the images of Parquet files that somebody else wrote, or say what is there."""
    folders, files = store.list_children()
    if WORK in folders:
        raise DataError(
            f"the packing of {store.uri} was not finished; run the same jobs.data.pack again to go "
            "on with it"
        ) from missing
    if any(entry.key == INDEX for entry in files):
        raise DataError(
            f"{store.uri} has an {INDEX} but no {COMMIT}: not all of the packed set was copied"
        ) from missing
    parquet = sorted(
        (entry for entry in store.list() if _is_parquet(entry.key)), key=lambda entry: entry.key
    )
    if not parquet:
        raise DataError(
            f"{store.uri} is no packed set: it has no {COMMIT} and no Parquet file; see "
            "jobs.data.pack"
        ) from missing
    return list_parquet(config, store.uri, parquet)


def _is_parquet(key: str) -> bool:
    return key.endswith(".parquet") and not any(map(is_hidden, key.split("/")))
