"""What a run came to: counts, and how often the answer was the truth."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.score.columns import labels_in
from jobs.train.report import confusion_table

MAX_CONFUSION = 40  # more classes than this make no table that a person reads


class Tally:
    """Counts rows of parts as they come."""

    def __init__(self) -> None:
        self.num_images = 0
        self.num_failed = 0
        self.labels: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()  # truth and label
        self.score_labels: dict[str, None] = {}  # in the order of their appearance
        self.served: dict[str, Counter[str]] = {
            name: Counter() for name in ("version", "label_revision", "engine")
        }
        self.examples: list[tuple[str, str, str]] = []

    def add(self, part: pa.Table | None) -> None:
        """Count the rows of a part, if there is one."""
        if part is None:
            return
        self.num_images += part.num_rows
        failed = part.filter(pc.is_valid(part["code"]))
        self.num_failed += failed.num_rows
        self.failures.update(_counts(failed["code"]))
        for name, counter in self.served.items():
            counter.update(_counts(part[name]))
        if "label" in part.column_names:
            self.labels.update(_counts(part["label"]))
        self.score_labels |= dict.fromkeys(labels_in(part))
        if {"truth", "label"} <= set(part.column_names):
            known = part.filter(pc.and_(pc.is_valid(part["truth"]), pc.is_valid(part["label"])))
            both = zip(known["truth"].to_pylist(), known["label"].to_pylist(), strict=True)
            self.pairs.update(both)
        room = 5 - len(self.examples)
        if room > 0 and failed.num_rows:
            rows = failed.slice(0, room).select(["path", "code", "error"]).to_pylist()
            self.examples += [(row["path"], row["code"], row["error"]) for row in rows]

    @property
    def failed_share(self) -> float:
        """The share of images without an answer."""
        return self.num_failed / max(1, self.num_images)

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among the images that have both, or None without any."""
        total = self.pairs.total()
        right = sum(count for (truth, label), count in self.pairs.items() if truth == label)
        return right / total if total else None

    def summary(self) -> dict[str, Any]:
        """Return the counts as they stand in the result line."""
        line: dict[str, Any] = {
            "num_images": self.num_images,
            "num_scored": self.num_images - self.num_failed,
            "num_failed": self.num_failed,
            "failures": dict(self.failures.most_common()),
            "labels": dict(self.labels.most_common()),
            "versions": dict(self.served["version"]),
            "label_revisions": dict(self.served["label_revision"]),
            "engines": dict(self.served["engine"]),
        }
        if self.accuracy is not None:
            line["accuracy"] = round(self.accuracy, 4)
            line["num_with_truth"] = self.pairs.total()
        return line

    def show(self, console: Console) -> None:
        """Print tables for people."""
        if self.labels:
            table = Table(title="answers", title_justify="left")
            table.add_column("label")
            table.add_column("images", justify="right")
            for label, count in self.labels.most_common():
                table.add_row(escape(label), f"{count:,}")
            console.print(table)
        if self.pairs:
            names = sorted({name for pair in self.pairs for name in pair})
            if len(names) <= MAX_CONFUSION:
                counts = [[self.pairs[truth, label] for label in names] for truth in names]
                console.print(confusion_table(counts, names))
            console.print(
                f"accuracy {self.accuracy:.4f} over {self.pairs.total():,} images with truth "
                "and answer",
                highlight=False,
            )
        for path, code, error in self.examples:
            console.print(f"  {path}: {code}: {error}", highlight=False, markup=False)
        if self.num_failed:
            told = ", ".join(f"{count:,} {code}" for code, count in self.failures.most_common())
            console.print(f"without an answer: {told}", highlight=False, markup=False)
        for name, counter in self.served.items():
            if len(counter) > 1:
                told = ", ".join(f"{value}: {count:,}" for value, count in counter.items())
                console.print(
                    f"more than one {name.replace('_', ' ')} has answered ({told}); the column "
                    f"{name} says which",
                    highlight=False,
                    markup=False,
                )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.drop_null())
    return {str(each["values"]): each["counts"] for each in counted.to_pylist()}
