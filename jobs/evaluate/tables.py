"""The tables of a report as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.evaluate.charts import interval_bar
from jobs.evaluate.compare import Comparison
from jobs.evaluate.intervals import DASH, Estimate
from jobs.evaluate.report import FEW, Change, Report
from jobs.evaluate.slices import Slice
from jobs.evaluate.thresholds import Suggestion, Thresholds, threshold_text
from jobs.html_page import text

MATRIX_LABELS = 30
LIVE_LABELS = 60  # whose curves the page carries, for its slider
SHOWN_PAIRS = 12

MINUS = "\u2212"

Head = tuple[str, str]  # name, and how it sorts: text, number, or "" for not at all


def table(heads: Sequence[Head], rows: Iterable[str], kind: str = "") -> str:
    """Return a table that scrolls sideways where it is wide, and sorts by its heads."""
    head = "".join(
        f'<th data-sort="{sort}" tabindex="0"{_number(sort)}>{text(name)}</th>'
        if sort
        else f"<th>{text(name)}</th>"
        for name, sort in heads
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def number(value: float | None, shown: str) -> str:
    """Return a cell that sorts by a number and shows a text."""
    sort = "" if value is None else f"{value:.6f}"
    return f'<td class="number" data-value="{sort}">{shown}</td>'


def share(value: float | None) -> str:
    """Return a cell with a share in per cent."""
    return number(value, DASH if value is None else f"{value:.1%}")


def figure(estimate: Estimate, *, has_bar: bool = False) -> str:
    """Return a cell with a figure, its interval below, and a bar."""
    if estimate.value is None:
        return number(None, DASH)
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f'<span class="span">{estimate.low:.2f}{DASH}{estimate.high:.2f}</span>'
    bar = interval_bar(estimate) if has_bar else ""
    return number(estimate.value, f"{estimate.value:.3f}{interval}{bar}")


def label_table(report: Report) -> str:
    """Return the figures of each label."""
    heads = [("label", "text"), ("images", "number"), ("precision", "number")]
    heads += [("recall", "number"), ("F1", "number"), ("average precision", "number")]
    rows = []
    for one in report.figures.labels:
        few = ' <span class="tag">few</span>' if one.num_images < FEW else ""
        rows.append(
            f"<tr><td>{text(one.name)}{few}</td>{number(one.num_images, f'{one.num_images:,}')}"
            f"{figure(one.precision)}{figure(one.recall)}{figure(one.f1, has_bar=True)}"
            f"{figure(one.average_precision)}</tr>"
        )
    return table(heads, rows, "figures")


def confusion_matrix(report: Report) -> str:
    """Return the confusion matrix, of few enough labels."""
    names = report.judged.labels
    if len(names) > MATRIX_LABELS:
        return (
            f"<p>The matrix of {len(names):,} labels is in report.json; here is what is confused "
            "most.</p>"
        )
    columns = [*names, "unknown"] if report.judged.num_unknown else list(names)
    heads = "".join(f'<th scope="col"><span>{text(name)}</span></th>' for name in columns)
    rows = []
    for at, name in enumerate(names):
        counts = report.figures.confusion[at, : len(columns)].tolist()
        total = max(1, sum(counts))
        cells = "".join(
            f'<td class="{"hit" if at == to else "miss"}" style="--share:{count / total:.3f}" '
            f'title="{text(name)}, answered {text(columns[to])}: {count:,} of {total:,}">'
            f"{count if count else ''}</td>"
            for to, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="matrix"><caption>truth down, answer across'
        f"</caption><thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</div>"
    )


def confused_table(report: Report) -> str:
    """Return the pairs of labels that are confused most."""
    rows = [
        f"<tr><td>{text(one.truth)}</td><td>{text(one.answer)}</td>"
        f"{number(one.num_images, f'{one.num_images:,}')}{share(one.share)}</tr>"
        for one in report.confused[:SHOWN_PAIRS]
    ]
    if not rows:
        return "<p>Nothing was confused.</p>"
    heads = [("images of", "text"), ("answered", "text"), ("images", "number")]
    return table([*heads, ("of that label", "number")], rows)


def suggestion_table(suggestions: Sequence[Suggestion]) -> str:
    """Return the lowest threshold for each share of right answers."""
    rows = [
        f"<tr><td>{one.target:.1%} right</td>{_threshold(one)}{share(one.coverage)}"
        f"{share(None if one.coverage is None else 1 - one.coverage)}</tr>"
        for one in suggestions
    ]
    heads = [("to have", ""), ("threshold", ""), ("answered", ""), ("left to a person", "")]
    return table(heads, rows)


def label_threshold_table(thresholds: Thresholds) -> str:
    """Return a threshold for each label, and what the slider's threshold gives for it."""
    is_live = len(thresholds.labels) <= LIVE_LABELS
    rows = []
    for at, one in enumerate(thresholds.labels):
        now = f'<td class="number" data-answered="{at}"></td><td class="number" data-right="{at}">'
        suggestion = one.suggestion
        count = one.curve.num_images
        rows.append(
            f"<tr><td>{text(one.name)}</td>{number(count, f'{count:,}')}"
            f"{_threshold(suggestion)}{share(suggestion.coverage)}{share(suggestion.reached)}"
            f"{f'{now}</td>' if is_live else ''}</tr>"
        )
    heads = [("answers with", "text"), ("answers", "number"), ("threshold", "number")]
    heads += [("kept", "number"), ("right", "number")]
    live = [("kept at the slider", ""), ("right there", "")] if is_live else []
    return table([*heads, *live], rows)


def slice_table(slices: Sequence[Slice], limit: int) -> str:
    """Return the accuracy of each slice."""
    rows = []
    for one in slices[:limit]:
        worse = ' <span class="tag bad">worse</span>' if one.is_worse else ""
        rows.append(
            f'<tr><td>{text(one.trait)}</td><td class="name">{text(one.name)}{worse}</td>'
            f"{number(one.num_images, f'{one.num_images:,}')}"
            f"{figure(one.accuracy, has_bar=True)}</tr>"
        )
    heads = [("by", "text"), ("slice", "text"), ("images", "number"), ("accuracy", "number")]
    return table(heads, rows)


def paired_table(comparison: Comparison) -> str:
    """Return how two models' right and wrong answers fall together."""
    other = text(comparison.other)
    return (
        f'<div class="scroll"><table class="paired"><thead><tr><td></td><th>{other} right</th>'
        f"<th>{other} wrong</th></tr></thead><tbody>"
        f"<tr><th>{text(comparison.name)} right</th><td>{comparison.both_right:,}</td>"
        f'<td class="good">{comparison.gained:,}</td></tr>'
        f'<tr><th>{text(comparison.name)} wrong</th><td class="bad">{comparison.lost:,}</td>'
        f"<td>{comparison.both_wrong:,}</td></tr></tbody></table></div>"
    )


def change_table(comparison: Comparison) -> str:
    """Return the right answers of both models by label."""
    rows = [
        f"<tr><td>{text(one.name)}</td>{number(one.num_images, f'{one.num_images:,}')}"
        f"{share(one.num_right_other / one.num_images if one.num_images else None)}"
        f"{share(one.num_right / one.num_images if one.num_images else None)}"
        f"{number(one.gained, f'+{one.gained:,}' if one.gained else '0')}"
        f"{number(-one.lost, f'{MINUS}{one.lost:,}' if one.lost else '0')}</tr>"
        for one in comparison.labels
    ]
    heads = [("label", "text"), ("images", "number"), (f"recall of {comparison.other}", "number")]
    heads += [(f"recall of {comparison.name}", "number"), ("gained", "number"), ("lost", "number")]
    return table(heads, rows)


def changed_images(comparison: Comparison, changes: Sequence[Change], limit: int) -> str:
    """Return the images about which the models differ."""
    rows = [
        f'<tr><td class="word">{text(one.change)}</td>'
        f"<td>{text(one.truth)}</td>"
        f"<td>{text(one.other_answer)}</td>{share(one.other_confidence)}"
        f"<td>{text(one.answer)}</td>{share(one.confidence)}"
        f'<td class="path"><bdi>{text(one.path)}</bdi></td></tr>'
        for one in changes[:limit]
    ]
    heads = [("", "text"), ("truth", "text"), (comparison.other, "text"), ("sure", "number")]
    heads += [(comparison.name, "text"), ("sure", "number"), ("path", "text")]
    return table(heads, rows)


def _threshold(suggestion: Suggestion) -> str:
    value = suggestion.threshold
    return number(value, "not reached" if value is None else threshold_text(value))


def _number(sort: str) -> str:
    return ' class="number"' if sort == "number" else ""
