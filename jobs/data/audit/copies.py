"""From groups of equal and nearly equal images to findings: which two, and what is wrong with it.

A group in which labels differ is a conflict, one in several splits a leak, any other a mere copy.
Of a leak the image in the later split stays (test before validation before train), so that leaving
out the others keeps the test set as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jobs.data.audit.findings import Finding
from jobs.data.audit.lookalikes import LookAlikes
from jobs.data.audit.subject import Subject
from jobs.data.split import SPLITS

EXACT = ("label_conflict", "copy_across_splits", "copy")
NEAR = ("near_label_conflict", "near_copy_across_splits", "near_copy")


def check_copies(subject: Subject) -> Iterator[Finding]:
    """Yield the findings about files that are the same byte for byte."""
    groups: dict[tuple[str, object], list[int]] = defaultdict(list)
    # Two boxes of one photo are two images.
    boxes = subject.table["box"].to_pylist()
    for row in subject.usable.tolist():
        groups[subject.measures.sha256[row], tuple(boxes[row] or ())].append(row)
    for rows in groups.values():
        if len(rows) > 1:
            yield from _judge_group(subject, rows)


def check_look_alikes(subject: Subject, found: LookAlikes) -> Iterator[Finding]:
    """Yield the findings about images that look nearly the same, but are not the same file."""
    sha256 = subject.measures.sha256
    best: dict[int, tuple[tuple[int, float], int]] = {}
    for (left, right), likeness in zip(
        found.pairs.rows.tolist(), found.pairs.likeness.tolist(), strict=True
    ):
        if sha256[left] == sha256[right]:
            continue
        kind = _kind_of(subject, left, right)
        for row, other in ((left, right), (right, left)):
            candidate = ((-kind, likeness), other)
            if row not in best or candidate[0] > best[row][0]:
                best[row] = candidate
    for row, ((rank, likeness), other) in sorted(best.items()):
        yield subject.finding(
            NEAR[-rank],
            row,
            f"{likeness:.1%} alike; {_beside(subject, row, other)}",
            score=1 - likeness,
            other=other,
            leave_out=_gives_way(subject, row, other, is_conflict=rank == 0),
        )
    for crowd in found.crowds:
        example, other = int(crowd[0]), int(crowd[1])
        yield Finding(
            "relative_check",
            f"{len(crowd):,} of {len(subject.usable):,} images look nearly the same, for example "
            f"{subject.paths[example]} and {subject.paths[other]}: they were compared once more, "
            "beside each other only",
            other_path=None,
        )


def _judge_group(subject: Subject, rows: Sequence[int]) -> Iterator[Finding]:
    labels = {int(subject.codes[row]) for row in rows}
    splits = {subject.splits[row] for row in rows}
    kind = EXACT[0 if len(labels) > 1 else 1 if len(splits) > 1 else 2]
    stays = max(rows, key=lambda row: (SPLITS.index(subject.splits[row]), -row))
    for row in rows:
        if kind == "copy" and row == stays:
            continue  # one of them is no copy
        others = [other for other in rows if other != row]
        # Show the partner that the finding is about.
        other = next((o for o in others if subject.codes[o] != subject.codes[row]), None)
        if other is None:
            other = next((o for o in others if subject.splits[o] != subject.splits[row]), None)
        if other is None:
            other = stays if row != stays else others[0]
        yield subject.finding(
            kind,
            row,
            _beside(subject, row, other) + (f"; {len(rows)} copies" if len(rows) > 2 else ""),
            score=0.0,
            other=other,
            leave_out=kind == "label_conflict" or row != stays,
        )


def _kind_of(subject: Subject, left: int, right: int) -> int:
    if subject.codes[left] != subject.codes[right]:
        return 0
    return 1 if subject.splits[left] != subject.splits[right] else 2


def _gives_way(subject: Subject, row: int, other: int, *, is_conflict: bool) -> bool:
    """Say whether `row` is the one of the two to be left out: all of a conflict, else the one in
    the earlier split, or further down the list.
    """
    if is_conflict:
        return True
    mine, theirs = (SPLITS.index(subject.splits[each]) for each in (row, other))
    return mine < theirs or (mine == theirs and row > other)


def _beside(subject: Subject, row: int, other: int) -> str:
    mine, theirs = subject.label(row), subject.label(other)
    if mine != theirs:
        return f"here {mine!r}, there {theirs!r}"
    if subject.splits[row] != subject.splits[other]:
        return f"here in {subject.splits[row]}, there in {subject.splits[other]}"
    return f"both {mine!r} in {subject.splits[row]}"


def group_by_likeness(subject: Subject, found: LookAlikes) -> npt.NDArray[np.int64]:
    """Return a number per image: the same for images that must not be on two sides when a model
    is tested, since they have one group, one content or look alike.
    """
    from jobs.data.audit.lookalikes import join_rows

    keys: dict[tuple[str, str], int] = {}
    joined: list[tuple[int, int]] = []
    for row, group in enumerate(subject.groups):
        for key in (("sha256", subject.measures.sha256[row]), ("group", group or "")):
            if key[1]:
                joined.append((keys.setdefault(key, row), row))
    pairs = np.array(joined, dtype=np.int64).reshape(-1, 2)
    whole = np.concatenate([pairs, found.pairs.rows])
    return join_rows(whole, len(subject)).astype(np.int64)
