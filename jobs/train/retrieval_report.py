"""What a person wants to see of an embedding: a table, and a model card.

Nothing of torch or Ray is loaded by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from jobs.data.split import SPLITS
from jobs.markdown import plain
from jobs.train.report import CURVES
from models.manifest import Manifest

if TYPE_CHECKING:
    from jobs.data.index import Index
    from jobs.train.config import TrainConfig
    from jobs.train.retrieval import Retrieval

CARD = "model_card.md"
FIGURES = {"recall_at_1": "recall@1", "recall_at_5": "recall@5", "map_at_r": "mAP@R"}
CAUTIONS = {
    "test": "never trained on",
    "validation": "which also chose the epoch, so they flatter: there was no test split",
}


@dataclass(frozen=True)
class Found:
    """What was found in the held-out images of the trained classes (a split), and in the held-out
    classes, where there are any: by the model's vectors, and by the features of the backbone that
    the run began with.
    """

    split: str
    images: Retrieval
    images_start: Retrieval
    others: Retrieval | None = None
    others_start: Retrieval | None = None
    classes: tuple[str, ...] = ()  # held out

    def flat(self) -> dict[str, float]:
        """Return all figures by name, as they go into a manifest."""
        figures = self.images.flat()
        figures |= {f"backbone_{name}": value for name, value in _shares(self.images_start)}
        if self.others is not None and self.others_start is not None:
            of_classes = {name: value for name, value in self.others.flat().items()}
            of_classes |= {f"backbone_{name}": value for name, value in _shares(self.others_start)}
            figures |= {f"held_out_classes_{name}": value for name, value in of_classes.items()}
        return figures

    def rows(self) -> list[tuple[str, Retrieval, Retrieval]]:
        """Return what was searched, what the model found there, and what the backbone did."""
        rows = [(f"{self.split} images", self.images, self.images_start)]
        if self.others is not None and self.others_start is not None:
            rows.append(("held-out classes", self.others, self.others_start))
        return rows


def _shares(found: Retrieval) -> list[tuple[str, float]]:
    return [(name, value) for name, value in found.flat().items() if name in FIGURES]


def retrieval_table(found: Found) -> Table:
    """Return the figures of the model beside those of its backbone before training."""
    table = Table(title="an image's nearest among all others", title_justify="left")
    for column in ("searched", "figure", "embedding", "backbone's features", "images"):
        table.add_column(column, justify="left" if column in ("searched", "figure") else "right")
    for searched, model, start in found.rows():
        before = dict(_shares(start))
        for name, value in _shares(model):
            is_first = name == "recall_at_1"
            table.add_row(
                searched if is_first else "",
                FIGURES[name],
                f"{value:.3f}",
                f"{before[name]:.3f}",
                f"{model.num_images:,}" if is_first else "",
            )
        table.add_section()
    return table


def embedding_card(manifest: Manifest, index: Index, found: Found, config: TrainConfig) -> str:
    """Return the card: what the model is, what it was trained on, and what its vectors find."""
    assert config.embedding is not None
    counts = "\n".join(
        f"| {plain(name)} | {' | '.join(str(row[split]) for split in SPLITS)} |"
        for name, row in index.counts.items()
    )
    rows = "\n".join(
        f"| {searched} | {model.num_images} | "
        + " | ".join(f"{value:.3f}" for _, value in _shares(figures))
        + " |"
        for name, model, start in found.rows()
        for searched, figures in ((name, model), (f"{name}, backbone's features", start))
    )
    spec = manifest.preprocess
    names = ", ".join(map(plain, found.classes))
    held_out = (
        f"Held-out classes, of which no image was trained on: {names}."
        if found.classes
        else "No class was held out: how well vectors tell apart what is new was not measured."
    )
    return f"""# {manifest.name}

An embedding model on the backbone `{config.network.backbone}`: a vector of
{manifest.outputs.embedding} numbers and unit length, learnt by {config.embedding.objective}; input
{spec.height} x {spec.width} pixels ({spec.resize}). Trained {manifest.created:%Y-%m-%d} by run
`{manifest.run_id}`, code `{manifest.code_revision}`, configuration `{manifest.config_digest}`.

## Figures

Each image asks for its nearest, by cosine, among all others of its set. Recall@k: how often one of
the k nearest is of its class. mAP@R: how early those of its class come (Musgrave et al. 2020). The
{found.split} images were {CAUTIONS[found.split]}. The backbone's features are those that the run
began with, at unit length.

| searched | images | recall@1 | recall@5 | mAP@R |
|---|---|---|---|---|
{rows}

{held_out}

## Images trained on

| class | train | validation | test |
|---|---|---|---|
{counts}

{len(index.quarantine)} images could not be read and were left out.

![learning curves]({CURVES})
"""
