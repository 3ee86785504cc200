"""The ingest benchmark without a loader: its consumer, sets, shuffle figures and results."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common import Report
from benchmarks.ingest.__main__ import INTRODUCTION, main, make_setting
from benchmarks.ingest.consume import Window, consume
from benchmarks.ingest.pictures import save_picture
from benchmarks.ingest.plan import ENTRIES, LOOSE, PACKED, SIGHTLINE
from benchmarks.ingest.reader import Request
from benchmarks.ingest.results import COLUMNS, find_missing, memory_rows, rows, summarise
from benchmarks.ingest.sets import (
    Sample,
    make_set,
    photo_samples,
    storage_names,
    synthetic_samples,
    write_loose,
    write_packed,
    write_tars,
)
from benchmarks.ingest.shuffling import expected_blocks, quality
from benchmarks.ingest.waves import CEILING, MEMORY, PASS, READING, layouts
from benchmarks.page import as_markdown, write_section
from benchmarks.serving.rounds import FAILED
from benchmarks.serving.steps import Steps
from jobs.data.config import DataConfig
from jobs.data.order import shuffled, shuffled_runs
from jobs.data.packed import list_packed
from jobs.data.places import places_of, read_place
from models.preprocess import PreprocessSpec, prepare


def batches(count: int, size: int, closed: list[bool]) -> Generator[tuple[Any, Any], None, None]:
    try:
        for number in range(count):
            yield (
                np.ones((size, 8, 8, 3), np.uint8),
                list(range(number * size, (number + 1) * size)),
            )
    finally:
        closed.append(True)


def test_only_the_window_counts_and_the_pass_is_closed_behind_it() -> None:
    closed: list[bool] = []
    marks: list[bool] = []
    found = consume(lambda: batches(100, 4, closed), Window(10, 20), marks.append)
    assert found.num_images == 20
    assert len(found.keys) == 3 + 5  # 12 images of warm-up, 20 that count
    assert found.whole_per_second > 0
    assert marks == [True, False]
    assert closed == [True]


def test_a_pass_that_ends_within_the_window_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended after 16 images"):
        consume(lambda: batches(4, 4, []), Window(10, 20))


def test_a_request_survives_its_file() -> None:
    request = Request("raw", "same", "somewhere", Window(1, 2), 3, options={"buffer": 1000})
    assert Request.load(request.dump()) == request


# Shuffling


def test_a_permutation_is_as_good_as_a_random_sample() -> None:
    found = quality(shuffled(20_000, 0, 1), 20_000, 64)
    assert abs(found.correlation) < 4 / math.sqrt(20_000)
    assert found.blocks == pytest.approx(1, abs=0.01)
    assert found.design_effect == pytest.approx(1, abs=0.1)


def test_reading_as_it_lies_is_as_bad_as_can_be() -> None:
    found = quality(np.arange(20_480), 20_480, 64)
    assert found.correlation == pytest.approx(1)
    assert found.blocks == pytest.approx(1 / expected_blocks(20_480, 64))
    assert found.design_effect == pytest.approx(64, rel=0.02)


def test_runs_are_between_the_two_and_without_drift() -> None:
    found = quality(shuffled_runs(np.arange(20_480), 0, 1), 20_480, 64)
    assert abs(found.correlation) < 0.1  # runs of 16: its deviation is 4 times as large
    assert 0.4 < found.blocks < 0.6
    # Two images of a window of 512 come from one run by 15 in 511: 1 + 63 x 15/511.
    assert found.design_effect == pytest.approx(1 + 63 * 15 / 511, rel=0.25)


def test_blocks_of_a_random_batch_are_counted_without_replacement() -> None:
    assert expected_blocks(64, 64) == pytest.approx(1)
    assert expected_blocks(128, 64) == pytest.approx(2)
    random = np.random.default_rng(0)
    drawn = [len(np.unique(random.permutation(1000)[:64] // 64)) for _ in range(500)]
    assert expected_blocks(1000, 64) == pytest.approx(np.mean(drawn), abs=0.1)


# Sets


def test_photos_are_repeated_as_distinct_files_that_decode_alike(tmp_path: Path) -> None:
    for number, sample in enumerate(synthetic_samples(3)):
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / f"{number}.jpg").write_bytes(sample.data)
    samples = list(photo_samples(tmp_path, 8))
    assert len(samples) == len({sample.data for sample in samples}) == 8
    assert len({sample.path for sample in samples}) == 8
    spec = PreprocessSpec(height=32, width=32)
    assert len({prepare(sample.data, spec).tobytes() for sample in samples}) == 3


def test_synthetic_images_are_distinct_and_the_same_every_time() -> None:
    first, again = list(synthetic_samples(50)), list(synthetic_samples(50))
    assert first == again
    assert len({sample.data for sample in first}) == 50


def test_a_packed_set_is_listed_and_read_as_jobs_do(tmp_path: Path) -> None:
    samples = list(synthetic_samples(30))
    write_packed(tmp_path / "packed", iter(samples))
    listing = list_packed(DataConfig(uri=str(tmp_path / "packed"), source="packed"))
    found = {place.path: read_place(place) for place in places_of(listing.table)}
    assert found == {sample.path: sample.data for sample in samples}
    assert storage_names(tmp_path / "packed") == [sample.path for sample in samples]


def test_names_tell_how_a_set_lies_in_storage(tmp_path: Path) -> None:
    samples = [Sample(f"{name}/{number}.jpg", b"data") for name in "ab" for number in range(5)]
    write_loose(tmp_path / "loose", iter(samples))
    write_tars(tmp_path / "tars", iter(samples))
    assert storage_names(tmp_path / "loose") == [sample.path for sample in samples]
    names = storage_names(tmp_path / "tars")
    assert sorted(names) == [sample.path for sample in samples]
    assert names != sorted(names)
    with tarfile.open(tmp_path / "tars" / "train-00000.tar") as tar:
        assert tar.getnames()[:2] == ["0000000.jpg", "0000000.cls"]


def test_a_set_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []
    for about in ({"count": 1}, {"count": 1}, {"count": 2}):
        make_set(tmp_path / "set", dict(about), made.append)
    assert len(made) == 2


# Results


def test_quick_measures_fewer_of_the_same() -> None:
    quick, full = make_setting(None, True, ()), make_setting(None, False, ())
    assert full.names == tuple(entry.name for entry in ENTRIES)
    assert set(quick.names) < set(full.names)
    assert {PACKED, LOOSE} < set(quick.names)
    assert full.pace.window.measured >= 20_000
    assert full.pace.num_images > full.pace.window.warm_up + full.pace.window.measured


def test_layouts_of_the_ceiling_are_distinct() -> None:
    for cores in (1, 2, 16):
        names = [layout.name for layout in layouts(cores)]
        assert len(names) == len(set(names))


def memory(mib: float) -> dict[str, float]:
    return {"mib": mib, "shared_mib": 5, "per_second": 9, "first_batch_s": 1}


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    found = Steps(tmp_path / "steps.jsonl", {})
    for repetition, ceiling in enumerate((1000.0, 1100.0, 900.0)):
        for layout, share in (("2 proc", 1.0), ("1 proc", 0.9)):
            figures = {"per_second": ceiling * share, "cpu_ms": 1.0, "others_share": 0.0}
            found.add((READING, CEILING, layout, repetition), figures)
        for name, share in ((PACKED, 0.95), (LOOSE, 0.85), ("torch DataLoader", 0.8)):
            found.add(
                (READING, name, PASS, repetition),
                {
                    "per_second": ceiling * share,
                    "cpu_ms": 1.1,
                    "first_batch_s": 2.0,
                    "workers": 2,
                    "correlation": 0.0,
                    "blocks": 1.0,
                    "design_effect": 1.0,
                },
            )
    found.add((FAILED, READING, "WebDataset"), {"reason": "no such package"})
    for repetition, mib in enumerate((1000, 990, 1300)):
        found.add((MEMORY, 2000, repetition), memory(mib))
    found.add((MEMORY, 200_000, 0), memory(1050))
    return found


def test_ratios_are_paired_and_have_their_fixed_names(steps: Steps) -> None:
    report = Report("ingest")
    setting = make_setting(None, False, ())
    summarise(steps, setting, report)
    assert report.ratios["packed_to_ceiling"] == pytest.approx(0.95)
    assert report.ratios["loose_to_ceiling"] == pytest.approx(0.85)
    assert report.ratios["packed_to_best_peer"] == pytest.approx(0.95 / 0.8)
    assert report.ratios["memory_200k_to_2k"] == pytest.approx(1.05)
    assert report.figures["ceiling_images_per_s"] == 1000
    assert report.figures["packed_images_per_s"] == 950
    assert report.figures["first_batch_s"] == 2
    assert report.figures["best_peer"] == "torch DataLoader"
    assert report.failures == {"WebDataset": "no such package"}
    table = rows(steps, setting)
    assert [row.name.split(":")[0] for row in table] == [
        "ceiling",
        PACKED,
        LOOSE,
        "torch DataLoader",
    ]
    assert {len(row.cells) for row in table} == {len(COLUMNS)}
    assert len(memory_rows(steps)) == 2


def test_what_was_measured_without_the_packed_set_is_told(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.ingest.pictures.OUT", tmp_path / "out")
    setting = make_setting(None, False, ("DataLoader", "Sightline, files"))
    assert PACKED not in setting.names
    others = Steps(tmp_path / "others.jsonl", {})
    for key, figures in steps.below():
        if PACKED not in key:
            others.add(key, figures)
    report = Report("ingest")
    summarise(others, setting, report)
    assert find_missing(others, setting) == ""
    assert report.ratios == {
        "loose_to_ceiling": pytest.approx(0.85),
        "loose_to_best_peer": pytest.approx(0.85 / 0.8),
        "memory_200k_to_2k": pytest.approx(1.05),
    }
    assert [row.name for row in rows(others, setting)][1:] == [LOOSE, "torch DataLoader"]
    assert save_picture(rows(others, setting), others).stat().st_size > 10_000
    assert find_missing(others, make_setting(None, True, ())) == PACKED
    assert find_missing(Steps(tmp_path / "no.jsonl", {}), setting) == CEILING


def test_a_loader_that_is_unknown_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "pytorch"])
    assert ended.value.code == 2
    assert "no loader has that in its name" in capsys.readouterr().err


def test_a_section_of_the_page_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    report = Report("ingest", ratios={"packed_to_ceiling": 0.9})
    write_section(page, "Serving", "# Serving: results\n\nold\n\n## Ratios\n\n| 1 |\n")
    write_section(page, "Ingest", as_markdown("Ingest", INTRODUCTION, report, ("a",), [("b",)]))
    write_section(page, "Serving", "# Serving: results\n\nnew\n")
    text = page.read_text()
    assert "old" not in text
    assert text.index("new") < text.index("# Ingest: results") < text.index("packed_to_ceiling")
    assert text.count("# Ingest: results") == 1


def test_sightline_is_named_once_per_way() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names))
    assert all((entry.library == SIGHTLINE) == (entry.module == "sightline") for entry in ENTRIES)
