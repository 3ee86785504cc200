"""The three files of an audit, in a folder or a bucket: a page for people, a table for training,
and JSON for machines.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet

from jobs.data.audit.findings import to_table
from jobs.data.audit.report import Report
from jobs.data.leave_out import root_of
from jobs.own_folder import check_own, full_uri
from models.storage import Store

PAGE, TABLE, SUMMARY = "report.html", "findings.parquet", "audit.json"
OWN_FOLDER = ".sightline/audit"


def default_output(uri: str) -> str:
    """Return where an audit of a set is written if nothing is said: a folder named like the set.

    Raises `ConfigError` where that folder holds the audit of another set.
    """
    name = full_uri(uri).rpartition("/")[2]
    folder = f"{OWN_FOLDER}/{'set' if name in ('', '.', '..') else name}"
    check_own(folder, SUMMARY, {"uri": uri}, "the audit of", "--output")
    return folder


def write_report(store: Store, report: Report, page: str) -> dict[str, str]:
    """Write the files, `audit.json` last; return the URI of each."""
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(to_table(report.findings, root_of(report.uri)), sink)
    summary = json.dumps(report.to_json(), ensure_ascii=False, indent=1)
    for name, data in (
        (PAGE, page.encode("utf-8", "replace")),
        (TABLE, sink.getvalue().to_pybytes()),
        (SUMMARY, summary.encode("utf-8", "replace")),
    ):
        store.write(name, data)
    return {
        "report": f"{store.uri}/{PAGE}",
        "findings": f"{store.uri}/{TABLE}",
        "summary": f"{store.uri}/{SUMMARY}",
    }
