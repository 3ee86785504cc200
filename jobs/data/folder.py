"""Images in class folders: `<root>/<class>/**/image` or `<root>/<split>/<class>/**/image`.

The split layout is taken when the top level consists of split names only (train, validation, val,
valid, dev, test). Files that are no image by their suffix are ignored and counted; so is what is
hidden. The class is the folder's name exactly as written.
"""

from __future__ import annotations

from collections import Counter

from jobs.data.config import DataConfig
from jobs.data.sources import Listing, ListingBuilder, Row
from jobs.data.split import SPLIT_ALIASES, Split
from models.decoders import IMAGE_SUFFIXES
from models.errors import DataError
from models.storage import Store, open_store

HIDDEN = (".", "__MACOSX")


def list_folder(config: DataConfig) -> Listing:
    """List a folder or bucket prefix in one recursive pass."""
    store = open_store(config.uri)
    top = _visible(store.list_children()[0])
    has_splits = _is_split_layout(config.uri, top)
    depth = 2 if has_splits else 1
    builder = ListingBuilder()
    images: Counter[str] = Counter()  # by class folder
    ignored = 0
    loose: list[str] = []
    for entry in store.list():
        parts = entry.key.split("/")
        if not _is_image(parts):
            ignored += 1
        elif len(parts) <= depth:
            loose.append(entry.key)
        else:
            split = SPLIT_ALIASES[parts[0].casefold()] if has_splits else None
            builder.add(Row(f"{store.uri}/{entry.key}", parts[depth - 1], split))
            images["/".join(parts[:depth])] += 1
    warnings: tuple[str, ...] = ()
    if loose:
        warnings = (
            f"{len(loose):,} images lie outside of a class folder and are left out, "
            f"for example {loose[0]}",
        )
    empty = _find_empty(store, top, has_splits, images)
    return Listing(builder.build(), ignored, warnings=warnings, empty=empty)


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
        folders = [
            f"{split}/{name}" for split in top for name in _visible(store.list_children(split)[0])
        ]
    else:
        folders = top
    return tuple(folder for folder in folders if not images[folder])


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(HIDDEN)]


def _is_image(parts: list[str]) -> bool:
    hidden = any(part.startswith(HIDDEN) for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_SUFFIXES)
