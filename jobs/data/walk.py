"""The files below a local folder, whatever their names, links and rights are.

The storage library ends a listing at the first file name that is no Unicode, and at a link that
leads in a circle; folders of cameras and of old shares have both. Nothing is read or decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from models.errors import AccessError, NotFoundError

HIDDEN = (".", "__MACOSX")

Identity = tuple[int, int]  # device and number of a folder, by whatever path one came to it


class Found(NamedTuple):
    """One entry that is no folder, by the parts of its path below the root."""

    parts: tuple[str, ...]
    is_regular: bool  # a file that can be read: no pipe, and no link that leads nowhere


def walk(root: str, *, with_hidden: bool = False) -> Iterator[Found]:
    """Yield what lies below a folder while the walk goes on, the names of each folder sorted.

    Links to folders are followed, except those that lead back to a folder on the way. What is
    hidden comes only if asked for. Raises `AccessError` naming a folder that cannot be listed,
    unless it is hidden.
    """
    return _walk(root, (), (), with_hidden)


def list_folders(root: str, *parts: str) -> list[str]:
    """Return the names of the visible folders directly below a folder, sorted; links that lead back
    are none. Raises `NotFoundError` where there is no such folder, `AccessError`.
    """
    folder = _join(root, parts)
    above = [_identity(_join(root, parts[:depth])) for depth in range(len(parts) + 1)]
    found = _list(folder)
    if found is None or None in above:
        if os.path.isfile(folder):
            raise NotFoundError(f"{printable(folder)} is a file; expected a folder")
        raise NotFoundError(
            f"folder {printable(folder)} does not exist; check the path, or create it"
        )
    return [
        name
        for name, kind in found
        if kind is None
        and not is_hidden(name)
        and _identity(_join(root, (*parts, name))) not in above
    ]


def is_hidden(name: str) -> bool:
    """Say whether a file or folder of this name is none of the user's images."""
    return name.startswith(HIDDEN)


def printable(path: str) -> str:
    r"""Return a path as Unicode: bytes of a file name that are no UTF-8 are written as `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(
    root: str, parts: tuple[str, ...], above: tuple[Identity, ...], with_hidden: bool
) -> Iterator[Found]:
    folder = _join(root, parts)
    here = _identity(folder)
    if here is None or here in above:
        return
    try:
        found = _list(folder) or ()
    except AccessError:
        if any(map(is_hidden, parts)):
            return
        raise
    for name, is_regular in found:
        if is_hidden(name) and not with_hidden:
            continue
        if is_regular is None:
            yield from _walk(root, (*parts, name), (*above, here), with_hidden)
        else:
            yield Found((*parts, name), is_regular)


def _list(folder: str) -> list[tuple[str, bool | None]] | None:
    """Return the sorted names in a folder, with None for a folder and else whether it is a regular
    file; None where there is no such folder, which may have been removed meanwhile.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.name, None if _holds(entry.is_dir) else _holds(entry.is_file))
                for entry in entries
            )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AccessError(f"cannot list {printable(folder)}: {error.strerror}") from error


def _holds(says: Callable[[], bool]) -> bool:
    try:
        return says()
    except OSError:  # a link to itself, or to where this user may not look
        return False


def _identity(folder: str) -> Identity | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _join(root: str, parts: Sequence[str]) -> str:
    return f"{root.rstrip('/')}/{'/'.join(parts)}" if parts else root
