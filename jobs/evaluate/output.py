"""The four files of an evaluation, in a folder or a bucket: a page and a card for people, a table
of all images, and JSON for machines.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet

from jobs.evaluate.card import model_card
from jobs.evaluate.judged import Judged
from jobs.evaluate.page import render_page
from jobs.evaluate.report import Report
from jobs.own_folder import check_own
from models.bundle import Bundle
from models.manifest import Manifest
from models.storage import Store, split_uri

PAGE, CARD, SUMMARY, TABLE = "report.html", "model_card.md", "report.json", "predictions.parquet"
OWN_FOLDER = ".sightline/evaluate"
KEPT = ("path", "sha256", "width", "height", "group")


def default_output(uri: str, bundle: Bundle, revision: int = 0) -> str:
    """Return where an evaluation is written if nothing is said: a folder named like the set, the
    model and its label revision.

    Raises `ConfigError` where that folder holds the evaluation of another set or bundle.
    """
    name = split_uri(uri)[1] or "set"
    folder = f"{OWN_FOLDER}/{name}/{bundle.manifest.label.replace('/', '-')}"
    if revision:
        folder += f"-labels-{revision}"
    about = {"source": uri, "bundle": bundle.uri}
    check_own(folder, SUMMARY, about, "an evaluation with", "--out")
    return folder


def predictions(judged: Judged, rows: pa.Table, other: Judged | None = None) -> pa.Table:
    """Return a row per image: what the index says of it (`rows`, in the same order), truth, answer,
    and the probabilities in the order of the labels in report.json.
    """
    columns = {name: rows[name] for name in KEPT}
    size = len(judged.labels)
    flat = pa.array(judged.probabilities.ravel(), pa.float32())
    columns |= {
        "truth": pa.array([judged.name(label) for label in judged.truth.tolist()]),
        "answer": pa.array([judged.name(label) for label in judged.answers.tolist()]),
        "confidence": pa.array(judged.confidence),
        "is_right": pa.array(judged.is_right),
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, size),
    }
    if other is not None:
        columns |= {
            "other_answer": pa.array([other.name(label) for label in other.answers.tolist()]),
            "other_confidence": pa.array(other.confidence),
            "other_is_right": pa.array(other.is_right),
        }
    return pa.table(columns)


def write_report(
    store: Store, manifest: Manifest, report: Report, table: pa.Table, rows: int
) -> dict[str, str]:
    """Write the files, `report.json` last; return the URI of each. The page's tables have at most
    `rows` rows.
    """
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, compression="zstd")
    summary = json.dumps(report.to_json(), ensure_ascii=False, indent=1)
    for name, data in (
        (PAGE, render_page(report, rows).encode("utf-8", "replace")),
        (CARD, model_card(manifest, report).encode("utf-8", "replace")),
        (TABLE, sink.getvalue().to_pybytes()),
        (SUMMARY, summary.encode("utf-8", "replace")),
    ):
        store.write(name, data)
    return {
        "report": f"{store.uri}/{PAGE}",
        "card": f"{store.uri}/{CARD}",
        "predictions": f"{store.uri}/{TABLE}",
        "summary": f"{store.uri}/{SUMMARY}",
    }
