"""Tar files as containers of images: which there are, how one is opened, where one ends.

What their members mean, `webdataset` (for training) and `jobs.score.containers` know.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO

from jobs.data.locate import split_at_root
from jobs.data.walk import is_hidden
from models.errors import DataError, StorageError
from models.storage import Entry, Store, is_remote, normalise_uri, open_store, split_uri

COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def find_shards(uri: str) -> list[Entry]:
    """Return the tar files below a folder or prefix, or the one that the URI names, with full URIs.

    Raises `DataError` where there is none, or where they are compressed.
    """
    if is_tar(uri):
        folder, name = split_uri(uri)
        store = open_store(folder)
        found = [entry for entry in store.list_children()[1] if entry.key == name]
    else:
        store = open_store(uri)
        found = [entry for entry in store.list() if not is_hidden_key(entry.key)]
    squeezed = [entry.key for entry in found if entry.key.lower().endswith(COMPRESSED)]
    if squeezed:
        raise DataError(
            f"{store.uri}/{squeezed[0]} is compressed, so no image in it can be read by itself; "
            "unpack it to .tar first (gunzip, zstd -d)"
        )
    shards = sorted(
        (
            Entry(f"{store.uri}/{entry.key}", entry.size)
            for entry in found
            if entry.key.lower().endswith(".tar")
        ),
        key=lambda entry: entry.key,
    )
    if not shards:
        raise DataError(f"{uri} holds no .tar file ({len(found):,} others); is it a folder?")
    return shards


def is_tar(uri: str) -> bool:
    """Say whether a URI names one tar file; a folder on a disk may be called so, too."""
    if not uri.lower().endswith(".tar"):
        return False
    return is_remote(uri) or not Path(normalise_uri(uri)).is_dir()


def root_of(uri: str) -> str:
    """Return the folder or prefix below which the tar files of a URI lie."""
    return split_uri(uri)[0] if is_tar(uri) else normalise_uri(uri)


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last part, as WebDataset does."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    key, _, extension = base.partition(".")
    return f"{folder}{slash}{key}", extension.lower()


def is_hidden_key(key: str) -> bool:
    """Say whether a key or a member lies in a hidden folder, or is hidden itself."""
    return any(map(is_hidden, key.split("/")))


def find_problem(shard: Entry, end: int) -> str:
    """Say what is wrong where reading a tar file ended; a sound one ends with a block of zeros."""
    root, key = split_at_root(shard.key)
    block = Store(root, is_patient=True).read_range(key, end, tarfile.BLOCKSIZE)
    if block == bytes(tarfile.BLOCKSIZE):
        return ""
    if len(block) < tarfile.BLOCKSIZE:
        return f"the tar file was cut short at byte {shard.size:,}"
    return f"the tar file is damaged at byte {end:,}"


def open_stream(uri: str) -> BinaryIO:
    """Return a tar file to be read from one end to the other; on a disk it can be sought in too.
    Raises `StorageError`.
    """
    if not is_remote(uri):
        try:
            return open(uri, "rb")
        except OSError as error:
            raise StorageError(f"cannot read {uri}: {error.strerror}") from error
    root, key = split_at_root(uri)
    return Store(root, is_patient=True).open_stream(key)
