"""What the numbers of images say: classes with few, classes without, groups on two sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from jobs.data.audit.config import AuditConfig
from jobs.data.audit.findings import Finding
from jobs.data.audit.subject import Subject
from jobs.data.config import DataConfig
from jobs.data.split import SPLITS


def check_counts(subject: Subject, config: AuditConfig, empty: Sequence[str]) -> Iterator[Finding]:
    """Yield findings about the images per class and split; `empty` are folders without any."""
    for folder in empty:
        yield Finding("empty_class", f"{folder}/ holds no image", label=folder.rpartition("/")[2])
    counts = subject.counts()
    totals = {name: sum(row.values()) for name, row in counts.items()}
    present = [name for name, total in totals.items() if total]
    if len(present) < 2:
        only = f"one class only, {present[0]!r}" if present else "no usable image"
        yield Finding("one_class", f"the set has {only} (is the path one level too deep?)")
    for name, total in totals.items():
        if not counts[name]["train"]:
            yield Finding(
                "no_training_image",
                f"{name!r} has {total:,} usable images, none to train on",
                label=name,
            )
        elif total < config.few_images:
            yield Finding(
                "few_images",
                f"{name!r} has {total:,} images, fewer than {config.few_images}",
                label=name,
            )
        elif total < config.enough_images:
            yield Finding(
                "could_be_more",
                f"{name!r} has {total:,} images, fewer than {config.enough_images}",
                label=name,
            )
    yield from _check_held_out(counts)
    yield from _check_imbalance({name: totals[name] for name in present}, config)


def check_classes(subject: Subject, config: DataConfig) -> Iterator[Finding]:
    """Yield the labels that `data.classes` does not let in."""
    if config.classes is None:
        return
    for name in subject.names:
        if name not in config.classes:
            yield Finding("unknown_label", f"{name!r} is not in data.classes", label=name)


def check_broken(subject: Subject, config: DataConfig, num_unlisted: int = 0) -> Iterator[Finding]:
    """Yield the broken images, and whether they are so many that training stops; it counts those
    with them that the listing could not make rows of, `num_unlisted`.
    """
    broken = [(row, why) for row, why in enumerate(subject.measures.reason) if why]
    for row, reason in broken:
        yield subject.finding("broken", row, reason, score=0.0)
    num_broken, total = len(broken) + num_unlisted, len(subject) + num_unlisted
    share = num_broken / max(1, total)
    if share > config.max_broken_share:
        yield Finding(
            "too_many_broken",
            f"{num_broken:,} of {total:,} images, {share:.1%}; data.max_broken_share is "
            f"{config.max_broken_share:.1%}",
        )


def check_groups(subject: Subject) -> Iterator[Finding]:
    """Yield the groups that the source itself puts into more than one split."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    groups = subject.groups
    for row in subject.usable.tolist():
        group = groups[row]
        if group:
            found[group].setdefault(subject.splits[row], row)
    for group, rows in sorted(found.items()):
        if len(rows) > 1:
            first, second = list(rows.values())[:2]
            yield subject.finding(
                "group_across_splits",
                first,
                f"group {group!r} is in {', '.join(split for split in SPLITS if split in rows)}",
                other=second,
            )


def _check_held_out(counts: dict[str, dict[str, int]]) -> Iterator[Finding]:
    for split in SPLITS[1:]:
        without = [name for name, row in counts.items() if row["train"] and not row[split]]
        if without and len(without) == sum(1 for row in counts.values() if row["train"]):
            yield Finding("no_held_out_image", f"there is no {split} image at all")
            continue
        for name in without:
            yield Finding("no_held_out_image", f"no {split} image of {name!r}", label=name)


def _check_imbalance(totals: dict[str, int], config: AuditConfig) -> Iterator[Finding]:
    if len(totals) < 2:
        return
    rare, common = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
    times = totals[common] / totals[rare]
    if times > config.max_imbalance:
        yield Finding(
            "imbalance",
            f"{totals[common]:,} images of {common!r}, {totals[rare]:,} of {rare!r}: {times:.0f} "
            f"times as many, more than {config.max_imbalance:g}",
            label=rare,
        )
