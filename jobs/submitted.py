"""Places that a job must not be given: relative ones where it was submitted to a cluster, for Ray
makes a copy of the code for it and removes that afterwards, and such as Ray cannot name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from models.errors import ConfigError
from models.storage import is_remote

RAY_WORKING_DIRS = "working_dir_files"  # where Ray unpacks `--working-dir` (runtime_env, 2.60)


def refuse_no_unicode(settings: Mapping[str, str]) -> None:
    """Raise `ConfigError` for a place whose name is no Unicode: Ray ends with a traceback when the
    command line holds one, and no row of a table can name it.
    """
    for name, uri in settings.items():
        raw = os.fsencode(uri)
        if raw.decode("utf-8", "replace").encode() != raw:
            raise ConfigError(
                f"{name}: {raw.decode('utf-8', 'backslashreplace')} holds bytes that are no "
                "UTF-8; rename it, or give a link to it that has another name"
            )


def refuse_lost_results(settings: Mapping[str, str], folder: Path) -> None:
    """Raise `ConfigError` where results, by the name of their setting, would go into Ray's copy of
    the working directory; `folder` is the one of this process.
    """
    if RAY_WORKING_DIRS not in folder.parts:
        return
    for name, uri in settings.items():
        if not is_remote(uri) and not Path(uri).is_absolute():
            raise ConfigError(
                f"{name} is the relative path {uri!r}, but a submitted job runs in a copy "
                "of your working directory that Ray removes afterwards. Give a bucket URI or an "
                "absolute path that every node sees, such as s3://bucket/folder"
            )
