"""What a job that was submitted to a cluster must not do: leave its results in the copy of the code
that Ray makes for it, and removes afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.errors import ConfigError
from models.storage import is_remote

RAY_WORKING_DIRS = "working_dir_files"  # where Ray unpacks `--working-dir` (runtime_env, 2.60)


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
