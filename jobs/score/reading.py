"""From an item to its bytes, or to the reason why there are none.

An image that is missing or too large is a result like any other. A store that stays unreachable is
no fault of an image: after a row of such failures the run stops, and can be resumed.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from jobs.data.locate import split_at_root
from jobs.data.places import read_place
from jobs.score.items import Item
from models.errors import AccessError, DataError, NotFoundError, SightlineError, StorageError
from models.storage import Store, is_remote

MAX_STREAK = 20  # failures of the store, one image after the other


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no answer: a sentence, and a word that does not change."""

    error: str
    code: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image with its bytes, or with a failure."""

    item: Item
    data: bytes = b""
    failure: Failure | None = None


def load(item: Item, max_bytes: int) -> Loaded:
    """Read one image that is not larger than `max_bytes`."""
    if item.problem:
        return Loaded(item, failure=Failure(item.problem, DataError.code))
    try:
        if item.container is not None:
            size, data = item.size, read_place(item.place) if item.size <= max_bytes else b""
        elif is_remote(item.path):
            root, key = split_at_root(item.path)
            size, data = Store(root, is_patient=True).read_within(key, max_bytes)
        else:
            size, data = _read_local(item.path, max_bytes)
    except SightlineError as error:
        return Loaded(item, failure=Failure(str(error), error.code))
    if size > max_bytes:
        told = f"the file has {size:,} bytes; the limit is {max_bytes:,} per image"
        return Loaded(item, failure=Failure(told, "image_too_large"))
    return Loaded(item, data)


class Streak:
    """Counts failures of the store that come one after the other."""

    def __init__(self) -> None:
        self._length = 0

    def follow(self, loaded: Loaded) -> None:
        """Raise `StorageError` when the store has failed too often in a row."""
        failure = loaded.failure
        self._length = self._length + 1 if failure and _is_of_the_store(loaded) else 0
        if failure and self._length >= MAX_STREAK:
            raise StorageError(
                f"{self._length} images in a row could not be read, the last one because: "
                f"{failure.error}. The run stops here; when the store answers again go on with "
                "--resume, which reads these images again"
            )


def _is_of_the_store(loaded: Loaded) -> bool:
    assert loaded.failure is not None
    code, where = loaded.failure.code, loaded.item.container or loaded.item.path
    # On a disk, a file that may not be read says nothing of the others.
    return code == StorageError.code or (code == AccessError.code and is_remote(where))


def _read_local(path: str, max_bytes: int) -> tuple[int, bytes]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise NotFoundError("this is no regular file")
        if status.st_size > max_bytes:
            return status.st_size, b""
        with open(path, "rb", buffering=0) as file:
            data = file.readall()
            return len(data), data
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("there is no such file") from error
    except PermissionError as error:
        raise AccessError("this user may not read the file") from error
    except (OSError, ValueError) as error:  # ValueError: a manifest's path with a zero byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise NotFoundError(f"there is no such file: {reason}") from error
        raise StorageError(f"the file cannot be read: {reason}") from error
