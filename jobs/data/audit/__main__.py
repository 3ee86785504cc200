"""`python -m jobs.data.audit SOURCE [key=value ...]`: what would spoil a model, before training.

SOURCE is a folder, a bucket prefix, a manifest or packed or tar files (source=manifest, ...). A key
is a setting of the `data` section (label_column=verdict) or of the audit (few_images=20).

Writes report.html, findings.parquet and audit.json. Tables and progress go to standard error; the
last line on standard output is the result as JSON. Exit status: 0, 1 when the audit could not be
made, 2 for an option that there is not, 3 when it found something as bad as --fail-on says, 130
when it was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.session import SessionOptions, open_session
from jobs.command import run_command
from jobs.config import load_config, quoted
from jobs.console import make_console, print_result, readable_errors, set_up_logging
from jobs.data.audit.config import AuditConfig, AuditJob
from jobs.data.audit.findings import count_kinds, count_severities
from jobs.data.audit.output import default_output
from jobs.data.audit.report import Report, show
from jobs.data.audit.run import audit_set
from jobs.data.config import DataConfig
from jobs.submitted import refuse_lost_results, refuse_no_unicode
from models.storage import open_store

FOUND = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one audit from the command line; returns the exit status."""
    given = _parser().parse_intermixed_args(arguments)
    console = make_console()
    set_up_logging()
    with readable_errors(console):
        refuse_no_unicode({"SOURCE": given.source, "--output": given.output or ""})
        job = load_job(given.source, given.config, given.overrides)
        output = given.output or default_output(job.data.uri)
        refuse_lost_results({"--output": output, "SOURCE": job.data.uri}, Path.cwd())
        store = open_store(output)
        store.check_writable()
        with open_session(SessionOptions()):
            report, written = audit_set(job, given.bundle, store.patient(), console)
        show(report, console)
        console.print(f"written to {written['report']}", highlight=False)
    failed = given.fail_on is not None and report.reaches(given.fail_on)
    print_result({**written, **result_line(report), "failed": failed})
    return FOUND if failed else 0


def load_job(source: str, config: Path | None, overrides: Sequence[str]) -> AuditJob:
    """Return the configuration of an audit: a training file if given, the source, overrides."""
    uri = f"data.uri={quoted(source)}"
    return load_config(AuditJob, config, [uri, *map(_with_section, overrides)])


def result_line(report: Report) -> dict[str, Any]:
    """Return what machines read of an audit."""
    return {
        "num_images": report.num_images,
        "num_classes": len(report.counts),
        **{str(name): count for name, count in count_severities(report.findings).items()},
        "by_finding": count_kinds(report.findings),
        "num_left_out": report.num_left_out,
        "model": report.model or None,
        "seconds": {stage: round(value, 1) for stage, value in report.seconds.items()},
    }


def _with_section(override: str) -> str:
    """Put a bare setting into the section that has it."""
    first = override.partition("=")[0].partition(".")[0].strip()
    if first in DataConfig.model_fields:
        return f"data.{override}"
    return f"audit.{override}" if first in AuditConfig.model_fields else override


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m jobs.data.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("source", help="path or URI of the set")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as source=manifest")
    made.add_argument("--config", type=Path, help="a training configuration: data, augment, ...")
    made.add_argument("--bundle", help="a published model, whose features judge the labels")
    made.add_argument("--output", help="folder or bucket prefix (default .sightline/audit/<set>)")
    made.add_argument(
        "--fail-on", choices=("error", "warning"), help="exit status 3 on such findings"
    )
    return made


if __name__ == "__main__":
    run_command(main)
