"""`model_card.md`: what a model is and how good it is on which images, in a page of Markdown."""

from __future__ import annotations

from jobs.evaluate.report import FEW, Report, overall, unlike_the_map
from jobs.evaluate.thresholds import threshold_text
from jobs.markdown import plain
from models.manifest import Manifest

SHOWN_LABELS = 200
SHOWN_SLICES = 5

CAUTIONS = {
    "train": "which it was trained on: they flatter",
    "validation": "which also chose the epoch and the temperature, so they flatter",
    "test": "never trained on",
    "all": "of which nobody says whether it was trained on them",
}


def model_card(manifest: Manifest, report: Report, training: str = "", *, about: str = "") -> str:
    """Return the card. `about` is a sentence on how the model is made, `training` Markdown that
    follows the figures.
    """
    spec = manifest.preprocess
    parts = [
        f"# {report.model}",
        f"A {manifest.kind} model, input {spec.height} x {spec.width} "
        f"pixels ({spec.resize}).{about} Made {manifest.created:%Y-%m-%d} by run "
        f"`{manifest.run_id}`, code `{manifest.code_revision}`, configuration "
        f"`{manifest.config_digest}`.",
        f"## Figures on the {_images(report)} ({report.num_images:,} images, "
        f"{CAUTIONS[report.split]})",
        "With intervals of 95 % (bootstrap over images).",
        _overall(report),
        _labels(report),
        "## How sure it is",
        _calibration(report),
        *_slices(report),
        *(["## Notes", *(f"- {plain(note)}" for note in report.notes)] if report.notes else []),
        training,
    ]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def _images(report: Report) -> str:
    return "images" if report.split == "all" else f"{report.split} split"


def _overall(report: Report) -> str:
    rows = "\n".join(f"| {name} | {figure.text()} |" for name, figure in overall(report))
    return f"| figure | value |\n|---|---|\n{rows}"


def _labels(report: Report) -> str:
    rows = [
        f"| {plain(one.name)} | {one.precision.text(2)} | {one.recall.text(2)} | "
        f"{one.f1.text(2)} | {one.average_precision.text(2)} | {one.num_images}"
        f"{' (few)' if one.num_images < FEW else ''} |"
        for one in report.figures.labels[:SHOWN_LABELS]
    ]
    more = len(report.figures.labels) - SHOWN_LABELS
    rest = f"\n\nand {more} more labels, in report.json" if more > 0 else ""
    heads = ("class", "precision", "recall", "F1", "average precision", "images")
    head = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    return "\n".join([head, *rows]) + rest


def _calibration(report: Report) -> str:
    told = f"Expected calibration error {report.calibration.error:.3f}"
    if report.error_without is not None:
        told += (
            f"; {report.error_without:.3f} without the temperature of {report.temperature:.3f}, "
            "which was fitted on the validation split"
        )
    else:
        told += "; no temperature (1)"
    chance, bound = report.calibration.chance, report.calibration.chance_bound
    told += (
        f". On so many images a perfectly calibrated model would have {chance:.3f} by chance, "
        f"rarely more than {bound:.3f}"
    )
    lines = [f"{told}.", ""]
    for one in report.thresholds.suggestions[:3]:
        if one.threshold is not None and one.coverage is not None:
            lines.append(
                f"- To be right in {one.target:.1%} of the answers: threshold "
                f"{threshold_text(one.threshold)}, {one.coverage:.1%} of the images are answered."
            )
    if told := unlike_the_map(report):
        lines += ["", told]
    return "\n".join(lines)


def _slices(report: Report) -> list[str]:
    worse = [one for one in report.slices if one.is_worse][:SHOWN_SLICES]
    if not worse:
        return []
    rows = "\n".join(
        f"- {one.trait} {plain(one.name)}: accuracy {one.accuracy.text()} of {one.num_images} "
        "images"
        for one in worse
    )
    return ["## Where it is worse", rows]
