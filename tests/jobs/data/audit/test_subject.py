"""What is known of a set without reading it: copies, and two boxes of one photo."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from jobs.data.audit.appearance import FINGERPRINT
from jobs.data.audit.copies import check_copies, check_look_alikes, spare_shared_files
from jobs.data.audit.findings import LEAVE_OUT
from jobs.data.audit.lookalikes import Limits, LookAlikes, Pairs, find_look_alikes
from jobs.data.audit.measure import Measures
from jobs.data.audit.pictures import draw_pictures
from jobs.data.audit.subject import Subject
from jobs.data.config import DataConfig
from jobs.data.sources import SCHEMA
from models.preprocess import Box, PreprocessSpec


def subject_of(
    sha256: list[str],
    *,
    labels: list[int] | None = None,
    splits: list[str] | None = None,
    boxes: list[Box | None] | None = None,
    path: str = "",
) -> Subject:
    """Return a set of sound images by their contents."""
    number = len(sha256)
    columns = {name: pa.nulls(number, SCHEMA.field(name).type) for name in SCHEMA.names}
    paths = [path or f"{row}.jpg" for row in range(number)]
    columns["path"] = pa.array(paths)
    columns["box"] = pa.array(boxes or [None] * number, SCHEMA.field("box").type)
    zeros = np.zeros(number, np.int32)
    fingerprints = np.zeros((number, FINGERPRINT), np.float32)
    measures = Measures(sha256, zeros, zeros, [""] * number, {}, fingerprints)
    codes = zeros if labels is None else np.array(labels, np.int32)
    table = pa.table(columns, schema=SCHEMA)
    return Subject(table, ("good", "bad"), codes, splits or ["train"] * number, measures)


def test_copies_of_a_file_are_compared_with_others_once() -> None:
    """Three hundred copies are no crowd, and leave room for the one that is like another image."""
    random = np.random.default_rng(4)
    values = random.normal(size=(500, FINGERPRINT))
    values[100:400] = values[99]
    values[499] = values[99] + 0.01 * random.normal(size=FINGERPRINT)
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    sha256 = [f"{99 if 99 <= row < 400 else row}" for row in range(500)]
    subject = subject_of(sha256)
    is_first = subject.contents == np.arange(500)
    assert is_first.sum() == 200
    found = find_look_alikes(values, Limits(), is_first)
    assert found.pairs.rows.tolist() == [[99, 499]]
    assert not found.crowds
    findings = list(check_look_alikes(subject, found))
    assert {one.row for one in findings} == {*range(99, 400), 499}
    assert {one.kind for one in findings} == {"near_copy"}


def test_what_is_like_an_image_is_judged_beside_each_of_its_copies() -> None:
    splits = ["train", "train", "test", "train"]
    subject = subject_of(["a", "a", "a", "b"], labels=[0, 1, 0, 0], splits=splits)
    alike = Pairs(np.array([[0, 3]]), np.array([0.99], np.float32))
    findings = {one.row: one for one in check_look_alikes(subject, LookAlikes(alike))}
    kinds = {row: one.kind for row, one in findings.items()}
    assert kinds == {
        0: "near_copy",
        1: "near_label_conflict",
        2: "near_copy_across_splits",
        3: "near_label_conflict",
    }
    assert findings[3].other_row == 1
    assert [one.kind for one in check_copies(subject)] == ["label_conflict"] * 3


def test_of_two_boxes_of_one_photo_each_has_its_own_picture(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(tmp_path / "two.png")
    boxes: list[Box | None] = [(0, 0, 40, 40), (40, 0, 80, 40)]
    subject = subject_of(["a", "a"], boxes=boxes, path=str(tmp_path / "two.png"))
    assert subject.contents.tolist() == [0, 1]
    shown = [subject.finding("dark", 0, "", other=1)]
    drawn = draw_pictures(subject, shown, DataConfig(uri="x"), PreprocessSpec(), 32)
    colours = {
        row: int(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).mean())
        for row, uri in drawn.items()
    }
    assert colours == {0: 0, 1: 255}


def test_a_file_that_two_rows_name_is_left_out_by_both_or_by_none() -> None:
    """Leaving out the copy in train once left out the same file in test, too."""
    subject = subject_of(["a", "a", "b", "b"], splits=["train", "test", "train", "train"])
    subject = replace(subject, mark=frozenset(LEAVE_OUT))
    subject.__dict__["paths"] = ["a.jpg", "a.jpg", "b.jpg", "c.jpg"]
    found = list(spare_shared_files(subject, check_copies(subject)))
    assert [(one.path, one.kind, one.leave_out) for one in found] == [
        ("a.jpg", "copy_across_splits", False),
        ("a.jpg", "copy_across_splits", False),
        ("c.jpg", "copy", True),
    ]
    assert "another row names this very file" in found[0].detail
    subject = replace(subject_of(["a", "a"], labels=[0, 1], path="a.jpg"), mark=subject.mark)
    found = list(spare_shared_files(subject, check_copies(subject)))
    assert [one.leave_out for one in found] == [True, True], "a conflict leaves out both"
