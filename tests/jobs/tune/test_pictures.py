"""The pictures of a search are drawn of whatever trials there are, and show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.tune.pictures import _Axis, draw_curves, draw_parallel, draw_range_test
from jobs.tune.records import Record, Status
from jobs.tune.suggestion import RangeTest, suggest


def trials(count: int) -> list[Record]:
    """Return trials whose figure is the better the nearer their rate is to 0.01."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(1, count + 1):
        lr = float(10 ** rng.uniform(-4, 0))
        value = 0.9 - 0.1 * abs(np.log10(lr) + 2)
        epochs = [{"train_loss": 1.0, "accuracy": value * share} for share in (0.6, 0.9, 1.0)]
        settings = {
            "optimiser.lr": lr,
            "network.backbone": ["resnet18", "resnet50"][number % 2],
            "augment.horizontal_flip": bool(number % 3),
            "epochs": 3,
        }
        status: Status = "stopped" if number % 4 == 0 else "finished"
        found.append(Record(number, status, settings, epochs, value, 3))
    return [*found, Record(count + 1, "failed", {"optimiser.lr": 9.0}, reason="NaN")]


def colours(path: Path) -> int:
    """Return how many different colours a picture has."""
    with Image.open(path) as image:
        assert image.width > 300
        assert image.height > 200
        found = image.convert("RGB").getcolors(image.width * image.height)
        assert found is not None
        return len(found)


def test_parallel_coordinates_have_a_line_for_each_trial(tmp_path: Path) -> None:
    draw_parallel(trials(12), "accuracy", 3, tmp_path / "many.png")
    draw_parallel(trials(2), "accuracy", 1, tmp_path / "few.png")
    assert colours(tmp_path / "many.png") > colours(tmp_path / "few.png") > 10


@pytest.mark.parametrize("count", [0, 1])
def test_pictures_are_drawn_of_no_and_of_one_trial(tmp_path: Path, count: int) -> None:
    best = 1 if count else None
    draw_parallel(trials(count), "accuracy", best, tmp_path / "a.png")
    draw_curves(trials(count), "accuracy", best, tmp_path / "b.png")
    assert colours(tmp_path / "a.png") > 1
    assert colours(tmp_path / "b.png") > 1


def test_learning_curves_mark_the_best_trial(tmp_path: Path) -> None:
    draw_curves(trials(8), "accuracy", 2, tmp_path / "best.png")
    draw_curves(trials(8), "accuracy", None, tmp_path / "none.png")
    green = (44, 160, 44)  # matplotlib's tab:green
    with Image.open(tmp_path / "best.png") as best, Image.open(tmp_path / "none.png") as none:
        assert green in {pixel for _, pixel in best.convert("RGB").getcolors(1 << 20) or []}
        assert green not in {pixel for _, pixel in none.convert("RGB").getcolors(1 << 20) or []}


def test_a_range_test_is_drawn_with_what_it_suggests(tmp_path: Path) -> None:
    rates = np.logspace(-6, 1, 100).tolist()
    losses = [2 - 1.5 / (1 + np.exp(-4 * (np.log10(r) + 3))) + r**2 for r in rates]
    losses[-1] = float("nan")
    test = RangeTest(rates, losses, suggest(rates, losses, 0.9, 4))
    draw_range_test(test, tmp_path / "lr.png")
    assert colours(tmp_path / "lr.png") > 20
    assert test.as_json()["losses"][-1] is None


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("value", ["weights/a$^$b.pth", "$$", "weights/良品.pth", "\U000fff00"])
def test_a_value_is_drawn_as_it_is_whatever_its_letters(tmp_path: Path, value: str) -> None:
    """What could be a formula raised ValueError; Chinese was drawn as \\u826f."""
    found = [
        Record(number, "finished", {"network.weights": weights}, [{"accuracy": 0.5}], 0.5, 1)
        for number, weights in enumerate([value, "none"], start=1)
    ]
    draw_parallel(found, "accuracy", 1, tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 1
    assert [text for _, text in _Axis([value]).ticks] == [value]


def test_axes_are_logarithmic_where_values_span_magnitudes() -> None:
    assert _Axis([1e-4, 1e-3, 1e-2]).places == pytest.approx([0.04, 0.5, 0.96])
    assert _Axis([1, 2, 3]).places == pytest.approx([0.04, 0.5, 0.96])
    assert _Axis([-1.0, 0.0, 1.0]).places == pytest.approx([0.04, 0.5, 0.96])
    names = _Axis(["b", "a", "b"])
    assert names.places == pytest.approx([0.96, 0.04, 0.96])
    assert [text for _, text in names.ticks] == ["a", "b"]
    assert _Axis([True, False]).places == pytest.approx([0.96, 0.04])
    assert _Axis([5, 5]).places == pytest.approx([0.5, 0.5])
