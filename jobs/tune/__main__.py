"""`python -m jobs.tune --config CONFIG [key=value ...]`: find the settings of a training.

Runs a sweep of trials and publishes the best one; with `--lr-test` the learning-rate range test
instead. `train.key=value` overrides the training that `base` names. Tables and progress go to
standard error; the last line on standard output is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.session import SessionOptions, open_session
from jobs.command import run_command
from jobs.config import load_config
from jobs.console import make_console, readable_errors, set_up_logging
from jobs.submitted import refuse_lost_results
from jobs.train.config import TrainConfig, written_by
from jobs.tune.config import TuneConfig
from jobs.tune.space import check_base, check_space

TRAIN = "train."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one search from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tune", description=__doc__)
    parser.add_argument("--config", type=Path, help="a YAML file, as those in configs/tune/")
    parser.add_argument("--lr-test", action="store_true", help="the learning-rate range test alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as trials=20")
    given = parser.parse_intermixed_args(arguments)
    console = make_console()
    set_up_logging()
    with readable_errors(console):
        own = [text for text in given.overrides if not text.startswith(TRAIN)]
        others = [text.removeprefix(TRAIN) for text in given.overrides if text.startswith(TRAIN)]
        config = load_config(TuneConfig, given.config, own)
        training = load_config(TrainConfig, config.base, others)
        check_base(training, config.base)
        refuse_lost_results(
            {f"train.{name}": uri for name, uri in written_by(training).items()}, Path.cwd()
        )
        if given.lr_test:
            line = _lr_test(config, training, console)
        else:
            check_space(config, others, str(given.config or "the command line"))
            line = _sweep(config, training, console)
    print(json.dumps(line))
    return 0


def _lr_test(config: TuneConfig, training: TrainConfig, console: Console) -> dict[str, Any]:
    from jobs.tune.search import find_lr  # with torch and Ray: a mistyped key is told before

    with open_session(SessionOptions()):
        test, folder = find_lr(config, training, console)
    found = test.suggestion
    if found.rate is None:
        console.print(f"no suggestion: {found.by}", highlight=False)
    else:
        console.print(
            f"train with optimiser.lr={found.rate:.2g} ({found.by}); picture in {folder}",
            highlight=False,
            markup=False,
        )
    return {
        "suggestion": found.rate,
        "by": found.by,
        "steepest": found.steepest,
        "diverged": found.diverged,
        "steps": len(test.losses),
        "folder": folder,
    }


def _sweep(config: TuneConfig, training: TrainConfig, console: Console) -> dict[str, Any]:
    from jobs.tune.search import plan, sweep

    trials = plan(config, training, console)
    with open_session(SessionOptions()):
        outcome = sweep(config, training, trials, console)
    best, published = outcome.best, outcome.published
    console.print(
        f"settings of trial {best.number}: {outcome.best_config}", highlight=False, markup=False
    )
    line = {
        "sweep": config.name,
        "trials": outcome.num_by_status,
        "best": best.number,
        f"validation_{training.monitor}": best.figure(training.monitor),
        "settings": best.settings,
        "config": outcome.best_config,
    }
    if published is not None:
        figures = published.evaluation.flat()
        line |= {"bundle": published.published.uri, "split": published.split}
        line |= {name: round(value, 4) for name, value in figures.items()}
    return line


if __name__ == "__main__":
    run_command(main)
