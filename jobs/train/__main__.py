"""`python -m jobs.train CONFIG [key=value ...]`: train, prove, evaluate and publish one model.

Tables and progress go to standard error; the last line on standard output is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cluster.session import SessionOptions, open_session
from jobs.command import run_command
from jobs.config import load_config
from jobs.console import make_console, readable_errors, set_up_logging
from jobs.submitted import refuse_lost_results
from jobs.train.config import TrainConfig, written_by
from jobs.train.embedding_run import run_embedding
from jobs.train.pipeline import run_training


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
        refuse_lost_results(written_by(config), Path.cwd())
        with open_session(SessionOptions()):
            run = run_training if config.embedding is None else run_embedding
            outcome = run(config, console)
    figures = outcome.evaluation.flat()
    line = {
        "bundle": outcome.published.uri,
        **{name: round(value, 4) for name, value in figures.items()},
        "num_images": int(figures["num_images"]),
        "split": outcome.split,
        "quarantined": len(outcome.index.quarantine),
        "seconds": {stage: round(value, 1) for stage, value in outcome.seconds.items()},
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    run_command(main)
