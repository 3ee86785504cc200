"""From groups of equal and nearly equal images to findings: which two, and what is wrong with it.

A group in which labels differ is a conflict, one in several splits a leak, any other a mere copy.
Of a leak the image in the later split stays (test before validation before train), so that leaving
out the others keeps the test set as it is.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

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
    for rows in _by_content(subject).values():
        if len(rows) > 1:
            yield from _judge_group(subject, rows)


def check_look_alikes(subject: Subject, found: LookAlikes) -> Iterator[Finding]:
    """Yield the findings about images that look nearly the same, but are not the same file.

    `found` has one row of each content; what is said of it holds for its copies too.
    """
    sha256 = subject.measures.sha256
    copies = _by_content(subject)
    # Of many copies, one for each label and split is enough to stand beside another image.
    partners = {
        row: {(subject.codes[copy], subject.splits[copy]): copy for copy in reversed(rows)}.values()
        for row, rows in copies.items()
    }
    best: dict[int, tuple[tuple[int, float], int]] = {}
    for (left, right), likeness in zip(
        found.pairs.rows.tolist(), found.pairs.likeness.tolist(), strict=True
    ):
        if sha256[left] == sha256[right]:
            continue
        for one, another in ((left, right), (right, left)):
            for row, other in itertools.product(copies[one], partners[another]):
                candidate = ((-_kind_of(subject, row, other), likeness), other)
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
            f"{len(crowd):,} of {len(copies):,} different images look nearly the same, for example "
            f"{subject.paths[example]} and {subject.paths[other]}: they were compared once more, "
            "beside each other only",
            other_path=None,
        )


def spare_shared_files(subject: Subject, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Take back that an image is to be left out where another row names the same file and stays: a
    file is left out by its path, with all its rows.
    """
    findings = list(findings)
    marked = {one.row for one in findings if one.leave_out}
    staying = {path for row, path in enumerate(subject.paths) if row not in marked}
    for one in findings:
        if one.leave_out and one.path in staying:
            told = f"{one.detail}; another row names this very file, so it is not left out"
            yield replace(one, leave_out=False, detail=told)
        else:
            yield one


def _by_content(subject: Subject) -> dict[int, list[int]]:
    """Return the usable rows of each content, by the first of them."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row in subject.usable.tolist():
        groups[int(subject.contents[row])].append(row)
    return groups


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
