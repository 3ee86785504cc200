"""Pictures and cards of a training, of many classes and of names that mean something elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from jobs.train.metrics import ClassFigures, Evaluation
from jobs.train.report import draw_confusion, training_section


def evaluation(names: list[str]) -> Evaluation:
    """Return figures of a model that is right about everything."""
    size = len(names)
    return Evaluation(
        accuracy=1.0,
        balanced_accuracy=1.0,
        loss=0.1,
        num_images=size,
        classes=tuple(ClassFigures(name, 1.0, 1.0, 1.0, 1) for name in names),
        confusion=tuple(tuple(int(i == j) for j in range(size)) for i in range(size)),
    )


@pytest.mark.parametrize("name", ["x_$1_$2", "a$^$b", "$$", "100% $a{$", r"\frac{"])
def test_a_name_that_could_be_a_formula_is_drawn_as_it_is(tmp_path: Path, name: str) -> None:
    draw_confusion(evaluation([name, "b"]), "test", tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").width > 300


def test_hundreds_of_classes_are_drawn_without_their_counts(tmp_path: Path) -> None:
    """A text in each of 90,000 cells took a minute and a half and 800 MB."""
    draw_confusion(evaluation([f"class {n}" for n in range(300)]), "test", tmp_path / "c.png")
    picture = Image.open(tmp_path / "c.png").convert("L")
    assert picture.width > 800


def test_a_name_is_no_markup_in_the_cards() -> None:
    counts = {"a|b": {"train": 1, "validation": 0, "test": 0}}
    index = SimpleNamespace(counts=counts, quarantine=())
    assert "| a\\|b | 1 | 0 | 0 |" in training_section(index)  # type: ignore[arg-type]
