"""Drawings of a report as inline SVG: no library is needed to show them, and they follow the page's
colours.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.evaluate.calibration import Calibration
from jobs.evaluate.intervals import Estimate
from jobs.evaluate.thresholds import STEPS, Curve

# Every chart has the same frame, in units of its view box.
LEFT, TOP, WIDTH, HEIGHT = 44, 12, 420, 300
BOX = f"0 0 {LEFT + WIDTH + 16} {TOP + HEIGHT + 44}"
BAR_WIDTH = 90


def reliability(calibration: Calibration) -> str:
    """Return the reliability diagram: accuracy over confidence by bins, the diagonal, and the share
    of images in each bin below.
    """
    total = max(1, sum(one.num_images for one in calibration.bins))
    parts = [f'<path class="ideal" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>']
    for one in calibration.bins:
        if one.accuracy is None or one.confidence is None:
            continue
        left, right = _x(one.low), _x(one.high)
        width = right - left - 1
        told = (
            f"confidence {one.low:.2f} to {one.high:.2f}: {one.num_images:,} images "
            f"({one.num_images / total:.1%}), {one.accuracy:.1%} right, {one.confidence:.1%} sure"
        )
        top, bottom = sorted((_y(one.accuracy), _y(one.confidence)))
        # The width of the gap's stripe says nothing, its opacity how many images there are.
        weight = 0.25 + 0.75 * min(1.0, one.num_images / total * 3)
        height = _y(0) - _y(one.accuracy)
        parts.append(
            f'<g><title>{told}</title><rect class="right" x="{left:.1f}" '
            f'y="{_y(one.accuracy):.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill-opacity="{weight:.2f}"/><rect class="gap" x="{left:.1f}" y="{top:.1f}" '
            f'width="{width:.1f}" height="{max(0.5, bottom - top):.1f}"/></g>'
        )
    return _chart("".join(parts), "confidence", "share of right answers", "reliability diagram")


def threshold_curve(curve: Curve) -> str:
    """Return accuracy and coverage over the threshold, with a line that the page's script moves."""
    coverage = [(step / STEPS, curve.coverage(step)) for step in range(STEPS + 1)]
    accuracy = [
        (step / STEPS, value)
        for step in range(STEPS + 1)
        if (value := curve.accuracy(step)) is not None
    ]
    body = (
        f'<path class="coverage" d="{_line(coverage)}"/>'
        f'<path class="accuracy" d="{_line(accuracy)}"/>'
        f'<line id="threshold-line" class="now" x1="{_x(0)}" x2="{_x(0)}" y1="{_y(0)}" '
        f'y2="{_y(1)}" data-from="{_x(0)}" data-to="{_x(1)}"/>'
    )
    return _chart(body, "threshold on the confidence", "share", "coverage and accuracy")


def interval_bar(figure: Estimate) -> str:
    """Return a figure from 0 to 1 as a dot on its interval."""
    if figure.value is None:
        return ""
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    return (
        f'<svg class="interval" viewBox="0 0 {BAR_WIDTH + 8} 10" aria-hidden="true">'
        f'<line class="rail" x1="4" x2="{BAR_WIDTH + 4}" y1="5" y2="5"/>'
        f'<line class="span" x1="{4 + BAR_WIDTH * low:.1f}" x2="{4 + BAR_WIDTH * high:.1f}" '
        f'y1="5" y2="5"/><circle cx="{4 + BAR_WIDTH * figure.value:.1f}" cy="5" r="3.5"/></svg>'
    )


def _chart(body: str, across: str, up: str, name: str) -> str:
    ticks = []
    for tenth in range(0, 11, 2):
        share = tenth / 10
        ticks.append(
            f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(share)}" y2="{_y(share)}"/>'
            f'<text x="{LEFT - 8}" y="{_y(share) + 4}" class="end">{share:.1f}</text>'
            f'<text x="{_x(share)}" y="{TOP + HEIGHT + 18}" class="middle">{share:.1f}</text>'
        )
    middle = TOP + HEIGHT / 2
    return (
        f'<svg class="chart" viewBox="{BOX}" role="img" aria-label="{name}">{"".join(ticks)}{body}'
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 38}" class="middle">{across}</text>'
        f'<text x="12" y="{middle}" class="middle" transform="rotate(-90 12 {middle})">{up}</text>'
        "</svg>"
    )


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_x(across):.1f} {_y(up):.1f}" for across, up in points)


def _x(share: float) -> float:
    return round(LEFT + WIDTH * share, 2)


def _y(share: float) -> float:
    return round(TOP + HEIGHT * (1 - share), 2)
