"""`python -m jobs.demo` (`make demo`): the whole way on real images, on this machine, with nothing
to prepare.

Solar cells from a package become a labelled folder in the object store; they are trained on,
exported, proven, published and served; cells that the model never saw go over HTTP. The last line
on standard output is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from cluster.session import SessionOptions, open_session
from jobs.command import run_command
from jobs.config import load_config
from jobs.console import bar, make_console, readable_errors, set_up_logging
from jobs.data.index import Index
from jobs.data.places import places_of, read_place
from jobs.demo_data import write_elpv
from jobs.local_serving import (
    as_it_is,
    check_port,
    deployed,
    local_config,
    with_models,
)
from jobs.train.config import TrainConfig
from jobs.train.pipeline import Outcome, run_training
from jobs.train.report import confusion_table
from models.errors import SightlineError

CONFIG = Path("configs/train/elpv.yaml")
ROWS_SHOWN = 12
TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True)
class Answered:
    """One held-out image and what the endpoint said of it."""

    path: str
    truth: str
    label: str
    confidence: float
    milliseconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__).parse_args(arguments)
    console = make_console()
    set_up_logging()
    started = time.perf_counter()
    with readable_errors(console):
        config = load_config(TrainConfig, CONFIG, [])
        check_port(local_config())
        counts = write_elpv(config.data.uri)
        console.print(f"solar cells in {config.data.uri}: {counts}", highlight=False)
        with open_session(SessionOptions(dashboard=True, connect=False)) as session:
            seconds = {"start": time.perf_counter() - started}
            outcome = run_training(config, console)
            seconds |= outcome.seconds
            mark = time.perf_counter()
            serve_config = as_it_is(with_models(local_config(), [config.name]))
            console.print("deploying with Ray Serve ...")
            with deployed(
                serve_config, session.dashboard_url, timeout_seconds=TIMEOUT_SECONDS
            ) as url:
                seconds["deploy"] = time.perf_counter() - mark
                mark = time.perf_counter()
                answers = score(outcome.index, f"{url}/v2/models/{config.name}/classify", console)
                seconds["score"] = time.perf_counter() - mark
            mark = time.perf_counter()
        seconds["stop"] = time.perf_counter() - mark
        show(answers, outcome, seconds, console)
    print(json.dumps(summary(answers, outcome, seconds, time.perf_counter() - started)))
    return 0


def score(index: Index, url: str, console: Console) -> list[Answered]:
    """Send every held-out image over HTTP, one after the other, and keep the answers."""
    table = index.table.filter(pc.equal(index.table["split"], "test"))
    rows = list(zip(places_of(table), table["label"].to_pylist(), strict=True))
    answers = []
    with (
        httpx.Client(timeout=30) as client,
        bar(console, "scoring over HTTP", len(rows)) as advance,
    ):
        for place, label in rows:
            data = read_place(place)
            mark = time.perf_counter()
            response = client.post(url, content=data)
            elapsed = (time.perf_counter() - mark) * 1000
            if response.status_code != 200:
                raise SightlineError(f"{url} answered {response.status_code}: {response.text}")
            answer = response.json()
            answers.append(
                Answered(
                    place.path,
                    index.classes[label],
                    answer["label"],
                    answer["confidence"],
                    elapsed,
                )
            )
            advance(1)
    return answers


def show(
    answers: list[Answered], outcome: Outcome, seconds: dict[str, float], console: Console
) -> None:
    """Print some answers, the confusion matrix, where the time went, and what to try next."""
    wrong = [answer for answer in answers if answer.label != answer.truth]
    right = [answer for answer in answers if answer.label == answer.truth]
    half = ROWS_SHOWN // 2
    table = Table(
        title=f"some right and some wrong answers of {len(answers)} held-out cells",
        title_justify="left",
    )
    for column in ("file", "truth", "label", "confidence"):
        table.add_column(column, justify="right" if column == "confidence" else "left")
    for answer in (*right[:half], *wrong[:half]):
        colour = "green" if answer.label == answer.truth else "red"
        name = PurePosixPath(answer.path).name
        table.add_row(
            name, answer.truth, f"[{colour}]{answer.label}[/]", f"{answer.confidence:.3f}"
        )
    console.print(table)
    console.print(confusion_table(confusion(answers, outcome.index.classes), outcome.index.classes))
    console.print(
        f"accuracy over HTTP {accuracy(answers):.3f}, balanced {balanced_accuracy(answers):.3f}, "
        f"{len(answers)} cells that were in no way part of the training",
        highlight=False,
    )
    times = "  ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
    console.print(f"where the time went: {times}", highlight=False)
    console.print(
        "what to try next:\n"
        "  make serve                                              keep this model up, then:\n"
        "  curl --data-binary @.sightline/data/elpv/defective/cell0001.png "
        "localhost:8000/v2/models/elpv/classify\n"
        "  .venv/bin/python -m jobs.train configs/train/fast.yaml name=yours data.uri=YOUR/FOLDER",
        highlight=False,
        markup=False,
        soft_wrap=True,  # commands are there to be copied
    )


def summary(
    answers: list[Answered], outcome: Outcome, seconds: dict[str, float], total: float
) -> dict[str, object]:
    """Return the result line."""
    return {
        "accuracy": round(accuracy(answers), 4),
        "balanced_accuracy": round(balanced_accuracy(answers), 4),
        "n_test": len(answers),
        "train_seconds": round(seconds["index"] + seconds["train"], 1),
        "total_seconds": round(total, 1),
        "serve_p50_ms": round(statistics.median(answer.milliseconds for answer in answers), 2),
        "bundle": outcome.published.uri,
    }


def confusion(answers: list[Answered], classes: tuple[str, ...]) -> list[list[int]]:
    """Return counts, truth down and answer across."""
    position = {name: i for i, name in enumerate(classes)}
    counts = [[0] * len(classes) for _ in classes]
    for answer in answers:
        counts[position[answer.truth]][position[answer.label]] += 1
    return counts


def accuracy(answers: list[Answered]) -> float:
    """Return the share of right answers."""
    return statistics.fmean(answer.label == answer.truth for answer in answers)


def balanced_accuracy(answers: list[Answered]) -> float:
    """Return the mean over the true classes of the share of right answers."""
    return statistics.fmean(
        accuracy([answer for answer in answers if answer.truth == truth])
        for truth in {answer.truth for answer in answers}
    )


if __name__ == "__main__":
    run_command(main)
