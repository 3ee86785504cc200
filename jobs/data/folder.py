"""Images in class folders: `<root>/<class>/**/image` or `<root>/<split>/<class>/**/image`.

The split layout is taken when the top level consists of split names only (train, validation, val,
valid, dev, test). Files that are no image by their suffix are ignored and counted; so is what is
hidden. The class is the folder's name exactly as written. An image that no row can name, or that is
no file, is listed as broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from jobs.data.config import DataConfig
from jobs.data.quarantine import Broken
from jobs.data.sources import Listing, ListingBuilder, Row
from jobs.data.split import SPLIT_ALIASES, Split
from jobs.data.walk import Found, is_hidden, list_folders, printable, walk
from models.decoders import IMAGE_SUFFIXES
from models.errors import DataError
from models.storage import Store, is_remote, open_store


def list_folder(config: DataConfig) -> Listing:
    """List a folder or bucket prefix in one recursive pass."""
    store = open_store(config.uri)
    top = _folders(store)
    has_splits = _is_split_layout(config.uri, top)
    depth = 2 if has_splits else 1
    builder = ListingBuilder()
    images: Counter[str] = Counter()  # by class folder
    ignored = 0
    loose: list[str] = []
    broken: list[Broken] = []
    for parts, is_regular in _files(store):
        if not _is_image(parts):
            ignored += 1
            continue
        if len(parts) <= depth:
            loose.append(printable("/".join(parts)))
            continue
        images[printable("/".join(parts[:depth]))] += 1
        path = f"{store.uri}/{'/'.join(parts)}"
        problem = _problem(path, is_regular)
        if problem:
            broken.append(Broken(printable(path), problem))
        else:
            split = SPLIT_ALIASES[parts[0].casefold()] if has_splits else None
            builder.add(Row(path, parts[depth - 1], split))
    warnings: tuple[str, ...] = ()
    if loose:
        warnings = (
            f"{len(loose):,} images lie outside of a class folder and are left out, "
            f"for example {loose[0]}",
        )
    empty = _find_empty(store, top, has_splits, images)
    return Listing(builder.build(), ignored, tuple(broken), warnings, empty)


def _files(store: Store) -> Iterator[Found]:
    """Yield all files, on a disk those too that the storage library cannot name."""
    if not is_remote(store.uri):
        return walk(store.uri, with_hidden=True)
    # The bucket has answered already; a listing of millions shall not end with a busy minute.
    return (Found(tuple(entry.key.split("/")), True) for entry in store.patient().list())


def _folders(store: Store, *parts: str) -> list[str]:
    if not is_remote(store.uri):
        return list(map(printable, list_folders(store.uri, *parts)))
    folders, _ = store.list_children("/".join(parts))
    return [name for name in folders if not is_hidden(name)]


def _problem(path: str, is_regular: bool) -> str:
    """Say why a file cannot be an image, or "" where reading it will tell."""
    if printable(path) != path:
        return "its name is no UTF-8, so no row can name it; rename it"
    return "" if is_regular else "it is no regular file, or a link that leads nowhere"


def _is_split_layout(uri: str, top: list[str]) -> bool:
    named: dict[str, Split] = {
        name: SPLIT_ALIASES[name.casefold()] for name in top if name.casefold() in SPLIT_ALIASES
    }
    others = [name for name in top if name not in named]
    if top and not others:
        if "train" not in named.values():
            raise DataError(
                f"{uri} has the split folders {', '.join(top)} but none for training; add train/"
            )
        return True
    # One class may well be called "test"; train beside test beside something else is a mistake.
    if len(set(named.values())) > 1 and "train" in named.values():
        raise DataError(
            f"{uri} mixes split folders ({', '.join(named)}) with others ({', '.join(others)}); "
            "expected either only splits or only classes at the top level"
        )
    return False


def _find_empty(
    store: Store, top: list[str], has_splits: bool, images: Counter[str]
) -> tuple[str, ...]:
    """Return the class folders without an image. A bucket has no empty folders, a disk does."""
    if has_splits:
        folders = [f"{split}/{name}" for split in top for name in _folders(store, split)]
    else:
        folders = top
    return tuple(folder for folder in folders if not images[folder])


def _is_image(parts: Sequence[str]) -> bool:
    return not any(map(is_hidden, parts)) and parts[-1].lower().endswith(IMAGE_SUFFIXES)
