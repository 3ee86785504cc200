"""`python -m jobs.evaluate SOURCE --bundle B [key=value ...]`: what a bundle is worth on the images
of a source, and with `--against` beside another bundle on the same images.

SOURCE is a folder of classes, a bucket prefix, a manifest or packed or tar files (source=manifest,
...). A key is a setting of the `data` section (label_column=verdict) or of the evaluation
(resamples=5000).

Writes report.html, model_card.md, predictions.parquet and report.json. Tables and progress go to
standard error; the last line on standard output is the result as JSON. Exit status: 0, 1 when no
evaluation could be made, 3 when the model is worse than --min-accuracy or
--min-balanced-accuracy says, or with --fail-if-worse than the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.session import SessionOptions, open_session
from jobs.command import run_command
from jobs.config import load_config, quoted
from jobs.console import make_console, print_result, readable_errors, set_up_logging
from jobs.data.config import DataConfig
from jobs.data.split import SPLITS
from jobs.evaluate.config import EvaluateConfig, EvaluateJob
from jobs.evaluate.output import default_output
from jobs.evaluate.report import Report, show
from jobs.evaluate.run import ALL, evaluate_set, open_subject, told_apart
from jobs.submitted import refuse_lost_results, refuse_no_unicode
from models.errors import ConfigError
from models.storage import open_store

FAILED = 3
SIGNIFICANT = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one evaluation from the command line; returns the exit status."""
    given = parser().parse_intermixed_args(arguments)
    console = make_console()
    set_up_logging()
    with readable_errors(console):
        refuse_no_unicode({"SOURCE": given.source, "--out": given.out or ""})
        job = load_job(given.source, given.config, given.overrides)
        if given.against is None and (given.against_labels or given.fail_if_worse):
            raise ConfigError("--against-labels and --fail-if-worse need --against, a bundle")
        subject = open_subject(given.bundle, given.labels)
        other = None
        if given.against is not None:
            other = open_subject(given.against, given.against_labels)
            subject, other = told_apart(subject, other)
        output = given.out or default_output(job.data.uri, subject.bundle, subject.reading.revision)
        refuse_lost_results({"--out": output, "SOURCE": job.data.uri}, Path.cwd())
        store = open_store(output)
        store.check_writable()
        with open_session(SessionOptions()):
            report, written = evaluate_set(
                job,
                subject,
                store.patient(),
                console,
                split=given.split,
                other=other,
                device=given.device,
            )
        failures = find_failures(report, given)
        show_outcome(report, written, failures, console)
    print_result({**written, **result_line(report), "failed": failures})
    return FAILED if failures else 0


def show_outcome(
    report: Report, written: Mapping[str, str], failures: Sequence[str], console: Console
) -> None:
    """Print what was found, where it is, and which bounds the model does not keep."""
    show(report, console)
    console.print(f"written to {written['report']}", highlight=False, markup=False)
    for failure in failures:
        console.print(failure, style="bold red", highlight=False, markup=False)


def load_job(source: str, config: Path | None, overrides: Sequence[str]) -> EvaluateJob:
    """Return the configuration: a training file if given, the source, overrides."""
    uri = f"data.uri={quoted(source)}"
    return load_config(EvaluateJob, config, [uri, *map(_with_section, overrides)])


def find_failures(report: Report, given: argparse.Namespace) -> list[str]:
    """Return a sentence on each bound that the model does not keep."""
    figures = report.figures
    found = []
    for option, figure in (
        ("min_accuracy", figures.accuracy.value or 0.0),
        ("min_balanced_accuracy", figures.balanced_accuracy.value or 0.0),
    ):
        least = getattr(given, option)
        if least is not None and figure < least:
            name = option.removeprefix("min_").replace("_", " ")
            found.append(f"{name} {figure:.4f} is below {least:g}")
    comparison = report.comparison
    if given.fail_if_worse and comparison is not None:
        is_worse = comparison.lost > comparison.gained
        if is_worse and comparison.p_value < SIGNIFICANT:
            found.append(f"{comparison.name} is worse than {comparison.other}")
    return found


def result_line(report: Report) -> dict[str, Any]:
    """Return what machines read of an evaluation."""
    figures, comparison = report.figures, report.comparison
    line: dict[str, Any] = {
        "model": report.model,
        "split": report.split,
        "num_images": report.num_images,
        "num_broken": len(report.broken),
        "accuracy": figures.accuracy.value,
        "balanced_accuracy": figures.balanced_accuracy.value,
        "macro_f1": figures.macro_f1.value,
        "ece": report.calibration.error,
        "seconds": {stage: round(value, 1) for stage, value in report.seconds.items()},
    }
    if comparison is not None:
        line["against"] = {
            "model": comparison.other,
            "accuracy": comparison.accuracy_other,
            "gained": comparison.gained,
            "lost": comparison.lost,
            "p_value": comparison.p_value,
        }
    return line


def _with_section(override: str) -> str:
    """Put a bare setting into the section that has it."""
    first = override.partition("=")[0].partition(".")[0].strip()
    if first in DataConfig.model_fields:
        return f"data.{override}"
    return f"evaluate.{override}" if first in EvaluateConfig.model_fields else override


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m jobs.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("source", help="path or URI of the images")
    add("overrides", nargs="*", metavar="key=value", help="as source=manifest")
    add("--bundle", required=True, help="the model: <store>/<name>/<version>")
    add(
        "--split",
        choices=(*SPLITS, ALL),
        help="which images (test where the source has splits, else all)",
    )
    add("--against", metavar="BUNDLE", help="another model, to be compared on the same images")
    add("--labels", metavar="URI", help="label store, of a model of kind dynamic")
    add("--against-labels", metavar="URI", help="label store of the other model")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="whose engine is asked: that of a server without a GPU, or with one (cpu)",
    )
    add("--config", type=Path, help="a training configuration, for its data section")
    add("--out", help="folder or bucket prefix (default .sightline/evaluate/<set>/<model>)")
    add("--min-accuracy", type=_share, help="exit status 3 below it")
    add("--min-balanced-accuracy", type=_share, help="exit status 3 below it")
    add(
        "--fail-if-worse",
        action="store_true",
        help="exit status 3 if the other model is better, and hardly by chance (p < 0.05)",
    )
    return made


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value


if __name__ == "__main__":
    run_command(main)
