"""`report.html` of an audit: one file that needs nothing else (`jobs.html_page`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from jobs.data.audit.config import AuditConfig
from jobs.data.audit.findings import KINDS, SEVERITIES, Finding, count_kinds, count_severities
from jobs.data.audit.report import Report
from jobs.data.split import SPLITS
from jobs.html_page import SHARED, asset, render_document, text

OWN = "jobs.data.audit"
BARS = 60  # classes in the histogram
BAR_WIDTH, BAR_HEIGHT, NAME_WIDTH = 460, 20, 170


def shown_pictures(findings: Sequence[Finding], config: AuditConfig) -> list[Finding]:
    """Return the findings that the page shows pictures of."""
    return [
        one
        for _, rows in _by_kind(findings)
        for one in [row for row in rows if row.path is not None][: config.page_pictures]
    ]


def render_page(report: Report, pictures: Mapping[int, str], config: AuditConfig) -> str:
    """Return the page; `pictures` are `data:` URIs by row of the audit."""
    sections = "\n".join(
        _section(kind, rows, pictures, config) for kind, rows in _by_kind(report.findings)
    )
    body = f"""<header>
<h1>Audit of <span class="uri">{text(report.uri)}</span></h1>
<p>{text(_summary(report))}</p>
{_severities(report)}
</header>
<main>
{_notes(report.notes)}
<section>
<h2>Images per class</h2>
{_histogram(report.counts)}
</section>
<section id="filters" aria-label="filters">{_filters(report)}</section>
{sections or "<p>Nothing was found.</p>"}
</main>"""
    return render_document(
        f"Audit of {report.uri}",
        body,
        styles=[asset(SHARED, "base.css"), asset(OWN, "report.css")],
        scripts=[asset(SHARED, "sort.js"), asset(OWN, "report.js")],
    )


def _by_kind(findings: Sequence[Finding]) -> Iterable[tuple[str, list[Finding]]]:
    for kind, rows in groupby(findings, key=lambda one: one.kind):
        yield kind, list(rows)


def _summary(report: Report) -> str:
    usable = sum(sum(row.values()) for row in report.counts.values())
    model = ""
    if report.model:
        model = f" Labels were checked with {report.model}"
        if report.model_accuracy is not None:
            model += f", which agrees with {report.model_accuracy:.1%} of them unseen"
        model += "."
    return (
        f"{report.num_images:,} images in {len(report.counts):,} classes, {usable:,} of them "
        f"usable; {report.created}.{model}"
    )


def _severities(report: Report) -> str:
    counts = count_severities(report.findings)
    cards = "".join(
        f'<li class="{severity}"><b>{counts[severity]:,}</b> {severity}</li>'
        for severity in SEVERITIES
    )
    return f'<ul class="cards">{cards}<li><b>{report.num_left_out:,}</b> to leave out</li></ul>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{text(note)}</li>" for note in notes) + "</ul>"


def _histogram(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return a bar per class, cut by split, as inline SVG."""
    by_size = sorted(counts.items(), key=lambda item: -sum(item[1].values()))
    most = max([sum(row.values()) for _, row in by_size] + [1])
    bars = []
    for place, (name, row) in enumerate(by_size[:BARS]):
        top, left = place * (BAR_HEIGHT + 4), float(NAME_WIDTH)
        label = name if len(name) <= 24 else f"{name[:23]}…"
        bars.append(f'<text x="{NAME_WIDTH - 8}" y="{top + 14}" class="name">{text(label)}</text>')
        for split in SPLITS:
            width = BAR_WIDTH * row[split] / most
            if width:
                bars.append(
                    f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}" '
                    f'class="{split}"><title>{text(name)}: {row[split]:,} {split}</title></rect>'
                )
            left += width
        total = sum(row.values())
        bars.append(f'<text x="{left + 6:.1f}" y="{top + 14}">{total:,}</text>')
    height = max(1, min(len(by_size), BARS)) * (BAR_HEIGHT + 4)
    legend = "".join(f'<li class="{split}">{split}</li>' for split in SPLITS)
    more = f"<p>and {len(by_size) - BARS:,} smaller classes</p>" if len(by_size) > BARS else ""
    return (
        f'<svg viewBox="0 0 {NAME_WIDTH + BAR_WIDTH + 70} {height}" role="img" '
        f'aria-label="images per class">{"".join(bars)}</svg>'
        f'<ul class="legend">{legend}</ul>{more}'
    )


def _filters(report: Report) -> str:
    kinds = [(kind, KINDS[kind].title) for kind in count_kinds(report.findings)]
    labels = sorted({one.label for one in report.findings if one.label})
    choices: dict[str, list[tuple[str, str]]] = {
        "severity": [(name, name) for name in SEVERITIES],
        "finding": kinds,
        "label": [(name, name) for name in labels],
        "split": [(name, name) for name in SPLITS],
    }
    fields = "".join(
        f'<label>{field}<select data-filter="{field}"><option value="">all</option>'
        + "".join(f'<option value="{text(v)}">{text(shown)}</option>' for v, shown in options)
        + "</select></label>"
        for field, options in choices.items()
    )
    return (
        f'{fields}<label>search<input type="search" data-filter="text"></label>'
        '<output id="shown"></output>'
    )


def _section(
    kind: str, rows: Sequence[Finding], pictures: Mapping[int, str], config: AuditConfig
) -> str:
    about = KINDS[kind]
    listed = rows[: config.page_rows]
    has_images = any(one.path for one in rows)
    more = (
        f'<p class="more">and {len(rows) - len(listed):,} more, in findings.parquet</p>'
        if len(rows) > len(listed)
        else ""
    )
    if has_images:
        has_pairs = any(one.other_path for one in rows)
        body = _image_table(listed, pictures, config, has_pairs=has_pairs)
    else:
        body = '<ul class="plain">' + "".join(_plain_row(one) for one in listed) + "</ul>"
    return f"""<details open class="kind" id="{kind}">
<summary><span class="badge {about.severity}">{about.severity}</span>
<h2>{text(about.title)}</h2> <span class="count">{len(rows):,}</span></summary>
<p class="advice">{text(about.advice)}</p>
{body}{more}
</details>"""


def _image_table(
    rows: Sequence[Finding],
    pictures: Mapping[int, str],
    config: AuditConfig,
    *,
    has_pairs: bool,
) -> str:
    heads = [("image", ""), *([("beside", "")] if has_pairs else []), ("label", "text")]
    heads += [("split", "text"), ("score", "number"), ("detail", "text"), ("path", "text")]
    head = "".join(
        f'<th data-sort="{sort}" tabindex="0">{name}</th>' if sort else f"<th>{name}</th>"
        for name, sort in heads
    )
    body = "\n".join(
        _image_row(one, pictures if place < config.page_pictures else {}, has_pairs=has_pairs)
        for place, one in enumerate(rows)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _image_row(one: Finding, pictures: Mapping[int, str], *, has_pairs: bool) -> str:
    cells = [_picture(one.row, pictures)]
    if has_pairs:
        cells.append(_picture(one.other_row, pictures))
    score = "" if one.score is None else f"{one.score:.3f}"
    paths = f"<bdi>{text(one.path or '')}</bdi>"
    if one.other_path:
        paths += f'<br><span class="other">beside <bdi>{text(one.other_path)}</bdi></span>'
    left_out = ' <span class="out">left out</span>' if one.leave_out else ""
    cells += [
        f"<td>{text(one.label or '')}</td>",
        f"<td>{text(one.split or '')}</td>",
        f'<td class="number">{score}</td>',
        f"<td>{text(one.detail)}{left_out}</td>",
        f'<td class="path">{paths}</td>',
    ]
    return f"<tr {_data(one)}>{''.join(cells)}</tr>"


def _picture(row: int | None, pictures: Mapping[int, str]) -> str:
    uri = None if row is None else pictures.get(row)
    return (
        f'<td class="picture"><img src="{uri}" alt="" loading="lazy"></td>' if uri else "<td></td>"
    )


def _plain_row(one: Finding) -> str:
    return f"<li {_data(one)}>{text(one.detail)}</li>"


def _data(one: Finding) -> str:
    values = {
        "severity": one.severity,
        "finding": one.kind,
        "label": one.label or "",
        "split": one.split or "",
    }
    return "data-row " + " ".join(f'data-{name}="{text(value)}"' for name, value in values.items())
