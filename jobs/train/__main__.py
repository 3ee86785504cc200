"""`python -m jobs.train CONFIG [key=value ...]`: train, prove, evaluate and publish one model.

Tables and progress go to standard error; the last line on standard output is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.session import SessionOptions, open_session
from jobs.config import load_config
from jobs.console import make_console, readable_errors, set_up_logging
from jobs.train.config import TrainConfig
from jobs.train.pipeline import run_training
from models.errors import ConfigError
from models.storage import is_remote

RAY_WORKING_DIRS = "working_dir_files"  # where Ray unpacks `--working-dir` (runtime_env, 2.60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one training from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file, as those in configs/train/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data.uri=s3://b/x")
    given = parser.parse_args(arguments)
    console = make_console()
    set_up_logging()
    with readable_errors(console):
        config = load_config(TrainConfig, given.config, given.overrides)
        refuse_lost_results(config, Path.cwd())
        with open_session(SessionOptions()):
            outcome = run_training(config, console)
    line = {
        "bundle": outcome.published.uri,
        **{name: round(value, 4) for name, value in outcome.evaluation.flat().items()},
        "num_images": outcome.evaluation.num_images,
        "split": outcome.split,
        "quarantined": len(outcome.index.quarantine),
        "seconds": {stage: round(value, 1) for stage, value in outcome.seconds.items()},
    }
    print(json.dumps(line))
    return 0


def refuse_lost_results(config: TrainConfig, folder: Path) -> None:
    """Raise `ConfigError` where results would go into the copy of the code that Ray makes for a
    submitted job, and removes afterwards.
    """
    if RAY_WORKING_DIRS not in folder.parts:
        return
    for key, uri in (("store", config.store), ("runs", config.runs), ("data.uri", config.data.uri)):
        if not is_remote(uri) and not Path(uri).is_absolute():
            raise ConfigError(
                f"{key} is the relative path {uri!r}, but a submitted job runs in a copy "
                "of your working directory that Ray removes afterwards. Give a bucket URI or an "
                f"absolute path that every node sees: {key}=s3://bucket/folder"
            )


if __name__ == "__main__":
    sys.exit(main())
