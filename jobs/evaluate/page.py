"""`report.html` of an evaluation: one file that needs nothing else (`jobs.html_page`)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from jobs.evaluate import tables
from jobs.evaluate.charts import interval_bar, reliability, threshold_curve
from jobs.evaluate.intervals import DASH, Estimate
from jobs.evaluate.mistakes import Mistake
from jobs.evaluate.report import Report, overall, unlike_the_map
from jobs.html_page import SHARED, asset, render_document, text

OWN = "jobs.evaluate"
SHOWN_BROKEN = 50

Section = tuple[str, str, str]  # anchor, title, HTML


def render_page(report: Report, rows: int = 200) -> str:
    """Return the page; its tables have at most `rows` rows."""
    sections = list(_sections(report, rows))
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "\n".join(
        f'<section id="{anchor}"><h2>{title}</h2>{html}</section>'
        for anchor, title, html in sections
    )
    return render_document(
        f"What {report.model} is worth",
        f"{_header(report)}<nav>{links}</nav><main>{body}</main>{_data(report)}",
        styles=[asset(SHARED, "base.css"), asset(OWN, "report.css")],
        scripts=[asset(SHARED, "sort.js"), asset(OWN, "report.js")],
    )


def _header(report: Report) -> str:
    split = "all images" if report.split == "all" else f"{report.split} split"
    labels = f", label revision {report.label_revision}" if report.label_revision else ""
    cards = "".join(_card(name, figure) for name, figure in overall(report))
    notes = "".join(f"<li>{text(note)}</li>" for note in report.notes)
    return f"""<header>
<h1>What <span class="uri">{text(report.model)}</span> is worth</h1>
<p>{report.num_images:,} images of <span class="uri">{text(report.source)}</span> ({split}),
{len(report.judged.labels):,} labels{labels}; answered by {text(report.engine)};
{report.created}.</p>
<ul class="cards">{cards}</ul>
{f'<ul class="notes">{notes}</ul>' if notes else ""}
</header>"""


def _card(name: str, figure: Estimate) -> str:
    value = "–" if figure.value is None else f"{figure.value:.3f}"  # noqa: RUF001
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = (
            f'<span class="span">{figure.low:.3f}{DASH}{figure.high:.3f}</span>'
            f"{interval_bar(figure)}"
        )
    return f"<li><b>{value}</b><span>{name}</span>{interval}</li>"


def _sections(report: Report, rows: int) -> Iterator[Section]:
    if report.comparison is not None:
        yield "comparison", f"Beside {text(report.comparison.other)}", _comparison(report, rows)
    yield "labels", "Each label", tables.label_table(report)
    yield "confusion", "What is taken for what", _confusion(report)
    yield "calibration", "How sure, and how often right", _calibration(report)
    yield "thresholds", "What a threshold buys", _thresholds(report)
    if report.slices:
        yield "slices", "Where it is worse", _slices(report, rows)
    yield "mistakes", "Surest mistakes", _mistakes(report)
    if report.broken:
        yield "broken", "Images left out", _broken(report)
    yield "method", "How this was made", _method(report)


def _comparison(report: Report, rows: int) -> str:
    comparison = report.comparison
    assert comparison is not None
    difference = comparison.difference
    span = "" if difference.low is None else f" ({difference.low:+.3f} to {difference.high:+.3f})"
    more = len(report.changes) - rows
    listed = (
        f"<h3>Images that changed</h3>{tables.changed_images(comparison, report.changes, rows)}"
        if report.changes
        else ""
    )
    if more > 0:
        listed += f'<p class="more">and {more:,} more, in predictions.parquet</p>'
    return (
        f'<p class="verdict">{text(comparison.verdict)}</p>'
        f"<p>Accuracy {comparison.accuracy:.3f} beside {comparison.accuracy_other:.3f}: "
        f"{difference.value:+.3f}{span}.</p>{tables.paired_table(comparison)}"
        f"<h3>By label</h3>{tables.change_table(comparison)}{listed}"
    )


def _confusion(report: Report) -> str:
    return (
        f'<div class="beside"><div>{tables.confusion_matrix(report)}</div>'
        f"<div><h3>Most often</h3>{tables.confused_table(report)}</div></div>"
    )


def _calibration(report: Report) -> str:
    error = f"{report.calibration.error:.3f}"
    if report.error_without is None:
        told = f"ECE {error}; the model's temperature is {report.temperature:.3f}."
    else:
        told = (
            f"ECE {error} with the model's temperature of {report.temperature:.3f}, "
            f"{report.error_without:.3f} without it."
        )
    chance, bound = report.calibration.chance, report.calibration.chance_bound
    told += (
        f" On so many images a perfectly calibrated model would have {chance:.3f} by chance, and "
        f"rarely more than {bound:.3f}."
    )
    return (
        f"<p>{told} Of answers that are 80 % sure, 80 % should be right: bars that end on the "
        "line. Red is the distance; paler bars have fewer images.</p>"
        f"{reliability(report.calibration)}"
    )


def _thresholds(report: Report) -> str:
    found = report.thresholds
    combined = (
        f"With all of them in force {found.coverage:.1%} of the images are answered"
        + ("" if found.accuracy is None else f", {found.accuracy:.1%} of those rightly")
        + "."
    )
    curve = found.curve
    wrong = curve.num_answered[0] - curve.num_right[0]
    now = (
        ("now-answered", "answered", f"{curve.coverage(0):.1%}"),
        ("now-right", "right among them", f"{curve.accuracy(0) or 0:.1%}"),
        ("now-left", "left to a person", f"{curve.num_images - curve.num_answered[0]:,}"),
        ("now-wrong", "wrong answers", f"{wrong:,}"),
    )
    facts = "".join(
        f'<div><dt>{name}</dt><dd id="{anchor}">{shown}</dd></div>' for anchor, name, shown in now
    )
    return f"""<p>Below the threshold an image is left to a person. Choose by what a wrong answer
costs you beside a look; a threshold that was chosen on these very images flatters on them.
{_of_the_map(report)}</p>
<div class="explorer">
<div>{threshold_curve(curve)}
<ul class="legend"><li class="coverage">answered</li>
<li class="accuracy">right among the answered</li></ul></div>
<div class="panel"><label>threshold <output id="threshold-shown">0.00</output>
<input id="threshold" type="range" min="0" max="100" value="0"></label>
<dl>{facts}</dl></div></div>
<h3>Lowest thresholds</h3>{tables.suggestion_table(found.suggestions)}
<h3>For each label, to be right in {found.precision:.0%} of its answers</h3>
<p>{combined}</p>{tables.label_threshold_table(found)}"""


def _of_the_map(report: Report) -> str:
    told = unlike_the_map(report)
    if report.judged.num_hidden:
        told += (
            f" {report.judged.num_hidden:,} images whose label is hidden are left to a person at "
            "every threshold."
        )
    return told.strip()


def _slices(report: Report, rows: int) -> str:
    return (
        "<p>Those first that are bad for certain: by the upper end of the interval.</p>"
        f"{tables.slice_table(report.slices, rows)}"
    )


def _mistakes(report: Report) -> str:
    if not report.mistakes:
        right, unknown = int(report.judged.is_right.sum()), report.judged.num_unknown
        wrong = report.num_images - right - unknown
        told = (
            f"{wrong:,} answers were wrong; no pictures of them were asked for."
            if wrong
            else "No answer was wrong."
        )
        return f"<p>{told}{f' {unknown:,} images were left unanswered.' if unknown else ''}</p>"
    has_heat = any(one.heat for one in report.mistakes)
    seen = (
        "Beside the image stands what the answer depended on: red is where hiding a part made it "
        "least likely."
        if has_heat
        else "Images as the model saw them."
    )
    told = f"<p>Wrong, and sure of it; the label may be what is wrong. {seen}</p>"
    return told + f'<ul class="gallery">{"".join(map(_mistake, report.mistakes))}</ul>'


def _mistake(one: Mistake) -> str:
    pictures = "".join(
        f'<img src="{uri}" alt="{alt}">'
        for uri, alt in ((one.picture, "the image"), (one.heat, "what the answer depended on"))
        if uri
    )
    hidden = ""
    if one.lowest is not None:
        hidden = f"; {one.lowest:.0%} with the weightiest part hidden"
    return (
        f'<li><div class="pictures">{pictures or "<span>no picture</span>"}</div>'
        f"<p><b>{text(one.answer)}</b> {one.confidence:.1%}{hidden}<br>"
        f"labelled <b>{text(one.truth)}</b> {one.truth_probability:.1%}</p>"
        f'<p class="path"><bdi>{text(one.path)}</bdi></p></li>'
    )


def _broken(report: Report) -> str:
    rows = [
        f'<tr><td class="path"><bdi>{text(one.path)}</bdi></td><td>{text(one.reason)}</td></tr>'
        for one in report.broken[:SHOWN_BROKEN]
    ]
    more = len(report.broken) - len(rows)
    rest = f'<p class="more">and {more:,} more, in report.json</p>' if more > 0 else ""
    return (
        f"<p>{len(report.broken):,} images could not be read.</p>"
        f"{tables.table([('path', 'text'), ('reason', 'text')], rows)}{rest}"
    )


def _method(report: Report) -> str:
    figures = report.figures
    ranking = (
        f"those of average precision from {figures.num_ranking_resamples:,}"
        if figures.num_ranking_resamples
        else "average precision has none, for so many images and labels"
    )
    cells = report.settings.get("cells", 7)
    return f"""<p>Intervals hold 95 %: bootstrap percentiles from {figures.num_resamples:,}
resamples of the images, {ranking}; Wilson's for slices, and where all or none are right. They take
images for independent: where many show one part they are too narrow. Balanced accuracy is the mean
recall of the labels that occur, macro F1 the mean of their F1. ECE:
{len(report.calibration.bins)} bins of equal width (Guo et al. 2017). What an answer depends on:
each of {cells} by {cells} parts hidden in turn (Zeiler and Fergus 2014).</p>"""


def _data(report: Report) -> str:
    """Return the numbers that the slider needs, as a block of JSON."""
    found = report.thresholds
    labels = found.labels if len(found.labels) <= tables.LIVE_LABELS else ()
    values = {
        "total": found.curve.num_images,
        "answered": found.curve.num_answered,
        "right": found.curve.num_right,
        "labels": [
            {
                "total": one.curve.num_images,
                "answered": one.curve.num_answered,
                "right": one.curve.num_right,
            }
            for one in labels
        ],
    }
    return f'<script type="application/json" id="curves">{json.dumps(values)}</script>'
