"""Images inside of other files: a set that `jobs.data.pack` wrote, and tar files.

Nothing is unpacked: an item says which bytes of which file its image is. Unlike a listing for
training this one decodes nothing, and an image needs no label.
"""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from jobs.data.config import DataConfig
from jobs.data.packed import list_packed
from jobs.data.shards import COMMIT, load_commit
from jobs.data.tar_files import (
    find_problem,
    find_shards,
    is_hidden_key,
    is_tar,
    open_stream,
    split_name,
)
from jobs.data.walk import printable, walk
from jobs.data.webdataset import LABEL_MEMBERS, MAX_TEXT, as_text
from jobs.score.items import BOX, ROWS_PER_CHUNK, Item, Source, parse_item_box
from models.decoders import IMAGE_SUFFIXES
from models.errors import DataError, StorageError
from models.storage import Entry, is_remote, open_store

PEEKED = 1000  # entries that tell a folder of tar files from one of images


def find_container(uri: str, label_column: str | None) -> Source | None:
    """Return the packed set or the tar files behind a URI, or None where it is something else."""
    if is_tar(uri):
        return Tars(uri, label_column)
    if not is_remote(uri) and not Path(uri).is_dir():
        return None
    if open_store(uri).exists(COMMIT):
        return Packed(uri, label_column is not None)
    first = [name.lower() for name in itertools.islice(_names(uri), PEEKED)]
    has_images = any(name.endswith(IMAGE_SUFFIXES) for name in first)
    if not has_images and any(name.endswith(".tar") for name in first):
        return Tars(uri, label_column)
    return None


def _names(uri: str) -> Iterator[str]:
    if not is_remote(uri):
        return (found.parts[-1] for found in walk(uri))
    keys = (entry.key for entry in open_store(uri).list())
    return (key.rpartition("/")[2] for key in keys if not is_hidden_key(key))


class Packed:
    """A packed set, in the order of its index, which is in memory as Arrow."""

    def __init__(self, uri: str, has_truth: bool) -> None:
        self.uri = uri
        about = load_commit(open_store(uri).read(COMMIT), uri)
        self.fingerprint = str(about["index"]["sha256"])
        self._table = list_packed(DataConfig(source="packed", uri=uri)).table
        self._has_truth = has_truth

    def items(self) -> Iterator[Item]:
        """Yield the rows."""
        names = ["path", "container", "offset", "size", "label", "box"]
        for start in range(0, self._table.num_rows, ROWS_PER_CHUNK):
            chunk: pa.Table = self._table.slice(start, ROWS_PER_CHUNK).select(names)
            columns = [chunk[name].to_pylist() for name in names]
            for row, cells in enumerate(zip(*columns, strict=True), start=start):
                path, container, offset, size, label, box = cells
                truth = label if self._has_truth else None
                yield Item(f"{row} {path}", path, path, truth, container, offset, size, box)

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._table.num_rows)


class Tars:
    """The images of tar files, file after file by their names, in the order within each."""

    fingerprint = ""

    def __init__(self, uri: str, label_column: str | None) -> None:
        self.uri = uri
        self._label_column = label_column
        self._shards = find_shards(uri)

    def items(self) -> Iterator[Item]:
        """Go through the heads of the members; of a file in a bucket all of it has to pass by."""
        for shard in self._shards:
            yield from _items(shard, self._label_column)

    def count(self) -> int | None:
        """Go through the files on a disk and count."""
        return None if is_remote(self.uri) else sum(1 for _ in self.items())


def _items(shard: Entry, label_column: str | None) -> Iterator[Item]:
    """Yield the images of one tar file, and the file itself where it is damaged."""
    sample = _Sample("")
    try:
        with open_stream(shard.key) as stream, _opened(stream, shard.key) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # a kilobyte of each
                key, extension = split_name(member.name)
                if not member.isfile() or is_hidden_key(key):
                    continue
                if key != sample.key:
                    yield from sample.items(label_column)
                    sample = _Sample(key)
                if f".{extension}".endswith(IMAGE_SUFFIXES):
                    sample.images.append(_item(shard.key, member))
                elif _says_something(member, extension, label_column):
                    file = tar.extractfile(member)
                    assert file is not None
                    sample.texts[extension] = file.read().decode("utf-8", "replace").strip()
            problem = find_problem(shard, tar.offset)
    except tarfile.TarError as error:
        problem = f"the tar file is damaged or cut short: {error}"
    except StorageError as error:
        if is_remote(shard.key):
            raise  # no fault of the file
        problem = str(error)
    yield from sample.items(label_column)
    if problem:
        told = f"{problem}; what follows in it is lost"
        yield Item(shard.key, shard.key, shard.key, problem=told)


def _opened(stream: BinaryIO, uri: str) -> tarfile.TarFile:
    if is_remote(uri):
        return tarfile.open(fileobj=stream, mode="r|")
    return tarfile.open(fileobj=stream, mode="r:")  # passes by the pictures


def _item(shard: str, member: tarfile.TarInfo) -> Item:
    path = printable(f"{shard}/{member.name}")
    # A tar file may hold two files of one name, and may be written anew between two runs.
    key = f"{shard} {member.offset_data} {member.size} {member.mtime} {path}"
    return Item(key, path, path, None, shard, member.offset_data, member.size)


def _says_something(member: tarfile.TarInfo, extension: str, label_column: str | None) -> bool:
    told = ("json", *LABEL_MEMBERS) if label_column else ("json",)
    return extension in told and member.size <= MAX_TEXT


@dataclass
class _Sample:
    """Members of a tar file that have one key: the pictures, and what is said of them."""

    key: str
    images: list[Item] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def items(self, label_column: str | None) -> Iterator[Item]:
        """Yield the pictures with their truth and box, if there are any."""
        if not self.images:
            return
        fields = self._fields()
        given = as_text(fields.get(label_column))  # as training reads it
        labels = [given, *(self.texts.get(name) for name in LABEL_MEMBERS)]
        truth = next((label for label in labels if label), None)
        said = str(fields.get(BOX) or "")
        for image in self.images:
            told = replace(image, truth=truth if label_column else None)
            try:
                yield replace(told, box=parse_item_box(said, image.shown))
            except DataError as error:  # of this image only; the others are not at fault
                yield replace(told, problem=str(error))

    def _fields(self) -> dict[Any, Any]:
        """Return what the JSON says; one that cannot be read says nothing."""
        try:
            fields = orjson.loads(self.texts.get("json", "{}"))
        except orjson.JSONDecodeError:
            return {}
        return fields if isinstance(fields, dict) else {}
