"""The folder that a job writes into where nothing is said. It is named like what the job is about,
so that two of one name would share it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from models.errors import ConfigError
from models.storage import is_remote, normalise_uri


def check_own(folder: str, file: str, about: Mapping[str, str], what: str, option: str) -> None:
    """Raise `ConfigError` if a folder holds results about another place: by its JSON `file`, in
    which the keys of `about` have other URIs. `what` it holds and the `option` to set are told.
    """
    try:
        before = json.loads(Path(folder, file).read_bytes())
        pairs = [(str(before[key]), uri) for key, uri in about.items()]
    except (OSError, ValueError, KeyError, TypeError):  # none, or of a version that did not say
        return
    for other, this in pairs:
        if full_uri(other) != full_uri(this):
            raise ConfigError(
                f"{folder} holds {what} {other}, which has the same name as {this}; give this one "
                f"a place of its own with {option}"
            )


def full_uri(uri: str) -> str:
    """Return a URI by which places can be compared."""
    full = normalise_uri(uri)
    return full if is_remote(full) else os.path.normpath(full)
