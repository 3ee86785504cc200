"""Where the bytes of images lie, and reading them: a file each, or a range of bytes in a container
(a Parquet shard of `jobs.data.pack`, a tar file).

A container is never unpacked or read whole: both formats store an image's bytes as they are, so an
image is one range. Ranges that lie close together in a bucket are read by one request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from jobs.data.locate import choose_threads, read_image, split_at_root
from jobs.data.parquet_rows import read_rows
from models.decoders import ImageLimits
from models.errors import ImageDecodeError, ImageError, NotFoundError, StorageError
from models.storage import Store, is_remote

# The columns that say where an image lies: of a file of its own only `path` is filled in.
CONTAINER = pa.dictionary(pa.int32(), pa.string())
FIELDS = (
    pa.field("path", pa.string()),
    pa.field("container", CONTAINER),
    pa.field("offset", pa.int64()),
    pa.field("size", pa.int64()),
)
SCHEMA = pa.schema(FIELDS)

MAX_GAP = 64 << 10  # bytes read in vain are cheaper than another request
MAX_REQUEST = 4 << 20
MAX_OPEN = 128  # containers on a disk that a process keeps open
MAX_ROWS = 64  # of Parquet that are read one after the other


@dataclass(frozen=True, slots=True)
class Place:
    """One image: its full path, or its name in a container (URI) with the range of its bytes. A
    negative offset stands for a row, `-1 - row`, of Parquet that has no such ranges.
    """

    path: str
    container: str | None = None
    offset: int = 0
    size: int = 0


def places_of(table: pa.Table) -> list[Place]:
    """Return the places of the rows of a table with the columns of `SCHEMA`."""
    if table["container"].null_count == table.num_rows:
        return [Place(path) for path in table["path"].to_pylist()]
    columns = [table[name].to_pylist() for name in SCHEMA.names]
    return [
        Place(path) if container is None else Place(path, container, offset, size or 0)
        for path, container, offset, size in zip(*columns, strict=True)
    ]


def read_place(place: Place, limits: ImageLimits | None = None) -> bytes:
    """Return the bytes of one image. Raises `StorageError` and its children, `ImageDecodeError`
    where the container ends before the image does, and `ImageTooLargeError` for a file beyond the
    `limits`.
    """
    if place.container is None:
        return read_image(place.path, limits)
    if place.offset < 0:
        return read_rows(place.container, [-1 - place.offset])[0]
    return _read_range(place.container, place.offset, place.size, place)


def read_group(group: Sequence[Place], limits: ImageLimits | None = None) -> list[bytes]:
    """Return the bytes of images that `group_reads` put together, by one request."""
    if len(group) == 1:
        return [read_place(group[0], limits)]
    if group[0].offset < 0:
        return read_rows(str(group[0].container), [-1 - place.offset for place in group])
    start = group[0].offset
    end = group[-1].offset + group[-1].size
    whole = memoryview(_read_range(str(group[0].container), start, end - start, group[-1]))
    return [
        bytes(whole[place.offset - start : place.offset - start + place.size]) for place in group
    ]


def group_reads(places: Sequence[Place]) -> list[list[int]]:
    """Divide positions in `places` into groups to be read by one request each.

    Images of one container in a bucket that lie close together share a request. On a disk every
    image is read by itself: there a request costs a few microseconds.
    """
    alone: list[list[int]] = []
    inside: list[int] = []
    for position, place in enumerate(places):
        if place.container is not None and (is_remote(place.container) or place.offset < 0):
            inside.append(position)
        else:
            alone.append([position])
    # Rows have negative offsets: ascending by their size, as bytes are.
    inside.sort(key=lambda position: (places[position].container, abs(places[position].offset)))
    groups: list[list[int]] = []
    for position in inside:
        if groups and _fits(places[groups[-1][0]], places[groups[-1][-1]], places[position]):
            groups[-1].append(position)
        else:
            groups.append([position])
    return alone + groups


def _fits(first: Place, last: Place, place: Place) -> bool:
    if place.offset < 0:
        return place.container == first.container and first.offset - place.offset < MAX_ROWS
    return (
        place.container == first.container
        and place.offset - (last.offset + last.size) <= MAX_GAP
        and place.offset + place.size - first.offset <= MAX_REQUEST
    )


Use = Callable[[int, "bytes | Exception"], Any]


def read_each(
    places: Sequence[Place], use: Use, threads: int | None = None, *, limits: ImageLimits
) -> list[Any]:
    """Call `use(position, bytes)` for every place on threads; return what it returned, in order.

    An image that is missing or cut off arrives as its `NotFoundError` or `ImageDecodeError`, one of
    more bytes than the limit, which is not read at all, as its `ImageTooLargeError`; so does one on
    a disk that cannot be read. A refused key or a dead bucket raises instead: that is no fault of
    an image.
    """
    results: list[Any] = [None] * len(places)
    if not places:
        return results
    waiting = iter(group_reads(places))

    def work() -> None:
        try:
            for group in waiting:
                for position, data in _read_each(places, group, limits):
                    results[position] = use(position, data)
        except BaseException:
            for _ in waiting:  # leave nothing for the other threads
                pass
            raise

    # Each thread takes what is next. A future per image would cost 0.07 ms of it, mostly in locks
    # that the threads wait for: a twelfth of decoding a photo.
    count = threads or _choose_threads(places[0])
    _announce(places)
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work) for _ in range(count)]:
            done.result()
    return results


def _choose_threads(place: Place) -> int:
    """Return how many threads read and decode in one task. Those of a container on a disk are
    announced, so one thread never waits; two would wait for each other at the interpreter's lock.
    """
    if place.container is not None and not is_remote(place.container):
        return 1
    return choose_threads(place.container or place.path)


def _announce(places: Sequence[Place]) -> None:
    """Let the kernel read ranges of local files ahead, all of them at once."""
    for place in places:
        if place.container is None or place.offset < 0 or is_remote(place.container):
            return
        with suppress(OSError):  # whoever reads it says what is wrong
            file = _opened(place.container)
            os.posix_fadvise(file.descriptor, place.offset, place.size, os.POSIX_FADV_WILLNEED)


def _read_each(
    places: Sequence[Place], group: list[int], limits: ImageLimits
) -> Iterator[tuple[int, bytes | Exception]]:
    try:
        for position in group:
            limits.check_bytes(places[position].size)  # 0 for a file of its own
        found = read_group([places[position] for position in group], limits)
    except (StorageError, ImageError) as error:
        if len(group) > 1:  # one of them may be at fault: the others are not
            for position in group:
                yield from _read_each(places, [position], limits)
            return
        _raise_if_everybodys(error, places[group[0]])
        yield group[0], error
        return
    yield from zip(group, found, strict=True)


def _raise_if_everybodys(error: Exception, place: Place) -> None:
    where = place.container or place.path
    is_images_own = isinstance(error, (NotFoundError, ImageError)) or not is_remote(where)
    if not is_images_own:
        raise error


def _read_range(container: str, offset: int, size: int, last: Place) -> bytes:
    if is_remote(container):
        root, key = split_at_root(container)
        data = Store(root, is_patient=True).read_range(key, offset, size)
    else:
        data = _pread(container, offset, size)
    if len(data) < size:
        raise ImageDecodeError(
            f"{container} ends before the image {last.path!r} does, at byte {offset + len(data):,} "
            f"of {offset + size:,}; it was cut short or replaced"
        )
    return data


def _pread(path: str, offset: int, size: int) -> bytes:
    try:
        file = _opened(path)  # held while it is read: forgotten, it is closed
        return os.pread(file.descriptor, size, offset)
    except FileNotFoundError as error:
        raise NotFoundError(f"cannot read {path}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _opened(path: str) -> _OpenFile:
    found = os.stat(path)
    # A file that was replaced under its name is another file: its ranges are others.
    return _open(path, found.st_ino, found.st_mtime_ns)


class _OpenFile:
    """An open file, closed when no thread reads it and it is no longer remembered."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=MAX_OPEN)
def _open(path: str, _inode: int, _modified: int) -> _OpenFile:
    return _OpenFile(path)
