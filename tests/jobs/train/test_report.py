"""Pictures and cards of a training, of many classes and of names that mean something elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fontTools.fontBuilder import FontBuilder  # type: ignore[import-untyped]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from matplotlib.font_manager import fontManager
from PIL import Image

from jobs.train.metrics import ClassFigures, Evaluation
from jobs.train.report import draw_confusion, fonts_for, training_section


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


def card(names: list[str]) -> str:
    """Return what the card says of a training with one image of each class."""
    counts = {name: {"train": 1, "validation": 0, "test": 0} for name in names}
    index = SimpleNamespace(counts=counts, quarantine=())
    return training_section(index)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x_$1_$2", "a$^$b", "$$", "100% $a{$", r"\frac{"])
def test_a_name_that_could_be_a_formula_is_drawn_as_it_is(tmp_path: Path, name: str) -> None:
    draw_confusion(evaluation([name, "b"]), "test", tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").width > 300


@pytest.fixture
def few_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with no fonts but those that come with matplotlib."""
    own = [each for each in fontManager.ttflist if each.name in ("DejaVu Sans", "STIXGeneral")]
    last = [each for each in fontManager.ttflist if each.name.startswith("Last Resort")]
    monkeypatch.setattr(fontManager, "ttflist", [*own, *last])


@pytest.fixture
def japanese(few_fonts: None, tmp_path: Path) -> str:
    """A font that has a few letters, and what it is called."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square" for letter in "良品不"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Sightline Gothic", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "gothic.ttf")
    fontManager.addfont(tmp_path / "gothic.ttf")
    return "Sightline Gothic"


@pytest.mark.filterwarnings("error:Glyph")
def test_a_name_is_drawn_with_a_font_that_has_its_letters(tmp_path: Path, japanese: str) -> None:
    """Chinese, Japanese and Korean names were empty boxes."""
    names = ["良品", "不良", "täglich"]
    fonts = fonts_for(names)
    assert fonts is not None
    assert fonts[-1] == japanese
    draw_confusion(evaluation(names), "test", tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").width > 300
    assert "| 良品 | 1 | 0 | 0 |" in card(names)
    assert fonts_for(["a", "täglich"]) == fonts[:-1]


@pytest.mark.filterwarnings("error:Glyph")
def test_classes_are_numbered_where_no_font_has_their_letters(
    tmp_path: Path, few_fonts: None
) -> None:
    names = ["good", "良品", "不良"]
    assert fonts_for(names) is None
    draw_confusion(evaluation(names), "test", tmp_path / "names.png")
    assert "| 1: good | 1 | 0 | 0 |\n| 2: 良品 | 1 | 0 | 0 |\n| 3: 不良 | 1 |" in card(names)
    assert "by their numbers in the confusion matrix.\n\n![confusion" in card(names)
    assert "| good | 1 | 0 | 0 |" in card(names[:1])
    assert "numbers" not in card(names[:1])
    others = ["good", "合格", "不可"]
    draw_confusion(evaluation(others), "test", tmp_path / "others.png")
    drawn = [Image.open(tmp_path / name).tobytes() for name in ("names.png", "others.png")]
    assert drawn[0] == drawn[1], "numbers, and no names"


def test_hundreds_of_classes_are_drawn_without_their_counts(tmp_path: Path) -> None:
    """A text in each of 90,000 cells took a minute and a half and 800 MB."""
    draw_confusion(evaluation([f"class {n}" for n in range(300)]), "test", tmp_path / "c.png")
    picture = Image.open(tmp_path / "c.png").convert("L")
    assert picture.width > 800


def test_a_name_is_no_markup_in_the_cards() -> None:
    assert "| a\\|b | 1 | 0 | 0 |" in card(["a|b"])
