"""Which images are to be scored: those of a folder, a bucket prefix or a manifest, or a single one;
and, in `containers`, those of a packed set or of tar files.

Those of a folder or a bucket are yielded while the listing goes on, so that millions of them need
no memory; a manifest, and the index of a packed set, is read whole. A file whose name is no Unicode
is scored like any other. No image is read or decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from jobs.data.locate import absolute
from jobs.data.manifest import READERS, parse_box, read_table, refuse_twice, texts
from jobs.data.places import Place
from jobs.data.split import SPLIT_ALIASES
from jobs.data.walk import is_hidden, list_folders, printable, walk
from models.decoders import IMAGE_SUFFIXES
from models.errors import DataError, NotFoundError
from models.preprocess import Box
from models.storage import Store, is_remote, normalise_uri, open_store, split_uri

ROWS_PER_CHUNK = 8192
BOX = "box"  # the column, and the key in the JSON of a tar file


@dataclass(frozen=True, slots=True)
class Item:
    """One image to score."""

    key: str  # unique in the source, the same in every run
    path: str  # full path or URI
    shown: str  # the path as it stands in the results
    truth: str | None = None
    container: str | None = None  # URI of the file that holds the image's bytes, if it has none
    offset: int = 0
    size: int = 0
    box: Box | None = None  # what of the image is to be looked at
    problem: str = ""  # why there is nothing to read, where the listing knows

    @property
    def place(self) -> Place:
        """Where the bytes lie."""
        return Place(self.path, self.container, self.offset, self.size)


class Source(Protocol):
    """What can be scored."""

    uri: str
    fingerprint: str  # changes where positions in the source would mean other images

    def items(self) -> Iterator[Item]:
        """Yield the images, in the same order each time."""
        ...

    def count(self) -> int | None:
        """Return how many there are; may take a listing. None where it would take too much."""
        ...


def open_source(uri: str, *, path_column: str, label_column: str | None) -> Source:
    """Return the source behind a path or URI, by what it is and how its name ends.

    With a `label_column` images carry their truth: of that column of a manifest, else the name of
    the class folder. Raises `DataError`, `StorageError`.
    """
    from jobs.score.containers import find_container

    full = normalise_uri(uri)
    suffix = full.lower().rpartition("/")[2].rpartition(".")[2]
    if is_remote(full) or Path(full).is_file():
        if suffix in READERS:
            return Manifest(full, path_column, label_column)
        if f".{suffix}" in IMAGE_SUFFIXES:
            return Single(full)
    container = find_container(full, label_column)
    if container is not None:
        return container
    if is_remote(full):
        return Bucket(full, label_column is not None)
    if not Path(full).is_dir():
        kind = "is no image or manifest by its suffix" if Path(full).exists() else "does not exist"
        raise NotFoundError(
            f"{uri} {kind}; expected a folder, a bucket prefix, an image "
            f"({', '.join(IMAGE_SUFFIXES)}), a tar file or a manifest (.{', .'.join(READERS)})"
        )
    return Folder(full, label_column is not None)


class Folder:
    """Images below a local folder, each folder's names sorted."""

    fingerprint = ""

    def __init__(self, uri: str, has_truth: bool) -> None:
        self.uri = uri
        self._has_truth = has_truth

    def items(self) -> Iterator[Item]:
        """Walk the folder. The names of one folder are in memory while it is walked."""
        depth = _class_depth(list_folders(self.uri)) if self._has_truth else 0
        for parts in self._images():
            path = f"{self.uri.rstrip('/')}/{'/'.join(parts)}"
            yield Item(path, path, printable(path), _truth(parts, depth))

    def count(self) -> int:
        """Walk the folder and count."""
        return sum(1 for _ in self._images())

    def _images(self) -> Iterator[tuple[str, ...]]:
        return (found.parts for found in walk(self.uri) if _is_image(found.parts[-1]))


class Bucket:
    """Images below a prefix of a bucket, in the order of its listing."""

    fingerprint = ""

    def __init__(self, uri: str, has_truth: bool) -> None:
        self.uri = uri
        self._store = Store(uri, is_patient=True)  # it has answered what lies there
        self._has_truth = has_truth

    def items(self) -> Iterator[Item]:
        """List the prefix, page by page."""
        depth = _class_depth(self._store.list_children()[0]) if self._has_truth else 0
        for key in self._keys():
            path = f"{self.uri}/{key}"
            yield Item(path, path, path, _truth(key.split("/"), depth))

    def count(self) -> int:
        """List the prefix and count."""
        return sum(1 for _ in self._keys())

    def _keys(self) -> Iterator[str]:
        for entry in self._store.list():
            if not any(map(is_hidden, entry.key.split("/"))) and _is_image(entry.key):
                yield entry.key


class Manifest:
    """Images named by a table, in its order. The table is in memory, as Arrow.

    The same image in two rows is scored twice and gets two rows.
    """

    def __init__(self, uri: str, path_column: str, label_column: str | None) -> None:
        self.uri = uri
        self._folder, name = split_uri(uri)
        data = open_store(self._folder).read(name)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self._table = read_table(uri, name, data)
        self._path_column = self._checked(path_column, "--path-column")
        self._label_column = label_column and self._checked(label_column, "--label-column")
        refuse_twice(self._table, BOX, f"manifest {uri}")

    def items(self) -> Iterator[Item]:
        """Yield the rows."""
        for start in range(0, self._table.num_rows, ROWS_PER_CHUNK):
            chunk: pa.Table = self._table.slice(start, ROWS_PER_CHUNK)
            paths = texts(chunk, self._path_column)
            truths: Sequence[str | None] = [None] * len(paths)
            if self._label_column:
                truths = [truth or None for truth in texts(chunk, self._label_column)]
            boxes = texts(chunk, BOX) if BOX in chunk.column_names else [""] * len(paths)
            rows = zip(paths, truths, boxes, strict=True)
            for row, (path, truth, box) in enumerate(rows, start=start):
                if not path:
                    raise DataError(
                        f"manifest {self.uri}: column {self._path_column!r} is blank in row "
                        f"{row + 1}, counted from 1 without the header; fill it in or remove it"
                    )
                full = absolute(self._folder, path)
                given = parse_item_box(box, f"manifest {self.uri}, row {row + 1}")
                yield Item(f"{row} {path}", full, path, truth, box=given)

    def count(self) -> int:
        """Return the number of rows."""
        return int(self._table.num_rows)

    def _checked(self, column: str, option: str) -> str:
        if column not in self._table.column_names:
            raise DataError(
                f"manifest {self.uri} has no column {column!r}; it has "
                f"{', '.join(map(repr, self._table.column_names))}; name one with {option}"
            )
        refuse_twice(self._table, column, f"manifest {self.uri}")
        return column


class Single:
    """One image."""

    fingerprint = ""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def items(self) -> Iterator[Item]:
        """Yield it."""
        yield Item(self.uri, self.uri, printable(self.uri))

    def count(self) -> int:
        """Return 1."""
        return 1


def parse_item_box(text: str, where: str) -> Box | None:
    """Return what of an image is to be looked at, None for all of it. Raises `DataError`."""
    try:
        return parse_box(text) if text else None
    except ValueError as error:
        raise DataError(f"{where}: {BOX!r} says {text!r}; expected {error}, or nothing") from None


def _class_depth(folders: Sequence[str]) -> int:
    """Return at which level the class folders lie: 1, or 2 where the first is of splits only."""
    visible = [name for name in folders if not is_hidden(name)]
    has_splits = bool(visible) and all(name.casefold() in SPLIT_ALIASES for name in visible)
    return 2 if has_splits else 1


def _truth(parts: Sequence[str], depth: int) -> str | None:
    return printable(parts[depth - 1]) if 0 < depth < len(parts) else None


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
