"""The columns of the results, in two forms: of the parts that a run leaves behind, and of the
finished table.

They differ in two things. A part has the `key` by which a resumed run knows the image again. And
with all scores a part keeps them as a list, because labels may be renamed while a run goes on; the
finished table has one column `p_<label>` for every label that occurred.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from jobs.score.answer import Answer
from models.errors import DataError

Scores = Literal["top", "all", "none"]

KEY = "key"
KEY_BYTES = 16
SCORES = "scores"
PREFIX = "p_"


@dataclass(frozen=True)
class Columns:
    """Which columns a run writes. Everything of it has to be the same when a run is resumed."""

    has_truth: bool
    has_label: bool
    scores: Scores
    top_k: int
    embedding_width: int  # 0 for none

    def part_schema(self) -> pa.Schema:
        """Return the columns of a part."""
        fields = [(KEY, pa.binary(KEY_BYTES)), ("path", pa.string())]
        if self.has_truth:
            fields.append(("truth", pa.string()))
        if self.has_label:
            fields += [("label", pa.string()), ("confidence", pa.float32())]
        if self.has_label and self.scores == "top":
            for rank in range(1, self.top_k + 1):
                fields += [(f"label_{rank}", pa.string()), (f"probability_{rank}", pa.float32())]
        if self.has_label and self.scores == "all":
            pair = pa.struct([("label", pa.string()), ("p", pa.float32())])
            fields.append((SCORES, pa.list_(pair)))
        fields += [
            ("model", pa.string()),
            ("version", pa.int64()),
            ("engine", pa.string()),
            ("label_revision", pa.int64()),
            ("milliseconds", pa.float32()),
            ("error", pa.string()),
            ("code", pa.string()),
        ]
        if self.embedding_width:
            fields.append(("embedding", pa.list_(pa.float32(), self.embedding_width)))
        return pa.schema(fields)

    def to_table(self, answers: Sequence[Answer]) -> pa.Table:
        """Return answers as the rows of a part."""
        schema = self.part_schema()
        self._check_widths(answers)
        columns: dict[str, list[object]] = {
            KEY: [digest(answer.item.key) for answer in answers],
            "path": [answer.item.shown for answer in answers],
            "truth": [answer.item.truth for answer in answers],
            "error": [answer.failure and answer.failure.error for answer in answers],
            "code": [answer.failure and answer.failure.code for answer in answers],
            SCORES: [
                [{"label": label, "p": p} for label, p in answer.scores]
                if answer.failure is None
                else None
                for answer in answers
            ],
        }
        for rank in range(self.top_k):
            ranked = [answer.scores[rank : rank + 1] for answer in answers]
            columns[f"label_{rank + 1}"] = [one[0][0] if one else None for one in ranked]
            columns[f"probability_{rank + 1}"] = [one[0][1] if one else None for one in ranked]
        arrays = [
            pa.array(
                columns[field.name]
                if field.name in columns
                else [getattr(answer, field.name) for answer in answers],
                field.type,
            )
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def final_schema(self, labels: Sequence[str]) -> pa.Schema:
        """Return the columns of the finished table; `labels` are those that occurred in scores."""
        fields: list[pa.Field] = []
        for field in self.part_schema():
            if field.name == SCORES:
                fields += [pa.field(f"{PREFIX}{label}", pa.float32()) for label in labels]
            elif field.name != KEY:
                fields.append(field)
        return pa.schema(fields)

    def finish(self, part: pa.Table, labels: Sequence[str]) -> pa.Table:
        """Turn rows of a part into rows of the finished table."""
        schema = self.final_schema(labels)
        if SCORES in part.column_names:
            scores = part[SCORES].to_pylist()
            rows = [{each["label"]: each["p"] for each in row or ()} for row in scores]
            for label in labels:
                column = pa.array([row.get(label) for row in rows], pa.float32())
                part = part.append_column(f"{PREFIX}{label}", column)
        return part.select(schema.names).cast(schema)

    def _check_widths(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            width = self.embedding_width if answer.embedding is None else len(answer.embedding)
            if self.embedding_width and width != self.embedding_width:
                raise DataError(
                    f"version {answer.version} of the model answers with {width} numbers per "
                    f"embedding, the results so far have {self.embedding_width}; begin anew with "
                    "--overwrite"
                )


def digest(key: str) -> bytes:
    """Return what stands for an item's key in a part."""
    raw = key.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(raw, digest_size=KEY_BYTES).digest()


def labels_in(part: pa.Table) -> list[str]:
    """Return the labels that occur in the scores of a part."""
    if SCORES not in part.column_names:
        return []
    pairs = pc.list_flatten(part[SCORES].combine_chunks())
    found: list[str] = pc.unique(pc.struct_field(pairs, "label")).to_pylist()
    return found
