"""What one worker makes of its images, without Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.score import worker as worker_module
from jobs.score.columns import Columns
from jobs.score.items import Item, open_source
from jobs.score.worker import Job, Worker
from models.bundle import open_bundle
from models.decoders import ImageLimits
from models.engines.base import Engine, EngineOptions, Feeding, Images
from models.errors import DataError
from models.label_map import first_reading
from models.predictor import Predictor, open_predictor
from models.preprocess import prepare
from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import BROKEN, jpeg, write
from tests.jobs.score.containers import tar_bytes, write_packed

NUM_IMAGES = 45
COLUMNS = Columns(False, True, "all", 3, 8)


class Batched:
    """The engine of the tiny model, as one that takes batches of 8 and changes with their size."""

    feeding = Feeding("batches", parallel=1, max_batch=8)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, images: Images) -> dict[str, Any]:
        """Run them one by one."""
        self.sizes.append(len(images))
        found = [self._engine.run(np.ascontiguousarray(image[None])) for image in images]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def job(bundle: str, **changed: Any) -> Job:
    """Return what a worker is told."""
    return Job(
        **{
            "bundle": bundle,
            "engine": EngineOptions(threads=2),
            "columns": COLUMNS,
            "reading": first_reading(open_bundle(bundle).manifest.classes),
            "label_revision": None,
            "num_readers": 2,
            **changed,
        }
    )


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Sound images, broken ones between them, and one that is gone."""
    files = {f"{n:03}.jpg": jpeg(n) for n in range(NUM_IMAGES)}
    write(
        tmp_path / "images", files | {f"{10 + n}-{k}": v for n, (k, v) in enumerate(BROKEN.items())}
    )
    (tmp_path / "images" / "020-gone.jpg").symlink_to("nowhere")
    source = open_source(str(tmp_path / "images"), path_column="path", label_column=None)
    return list(source.items())


@pytest.fixture
def predictor(bundle: str) -> Iterator[Predictor]:
    """The predictor that a replica would have."""
    opened = open_predictor(open_bundle(bundle), EngineOptions(threads=1))
    yield opened
    opened.close()


def check(rows: list[dict[str, Any]], items: list[Item], predictor: Predictor) -> None:
    """Assert that each row says what the predictor says, or why there is nothing to say."""
    assert [row["path"] for row in rows] == [item.shown for item in items]
    failing = {Path(row["path"]).name: row["code"] for row in rows if row["code"]}
    assert failing == {
        **{"10-text.jpg": "image_type", "11-empty.jpg": "image_decode"},
        **{"12-truncated.jpg": "image_decode", "020-gone.jpg": "not_found"},
    }
    for item, row in zip(items, rows, strict=True):
        if row["code"]:
            assert (row["label"], row["confidence"], row["embedding"]) == (None, None, None)
            assert row["error"]
            continue
        image = predictor.prepare(Path(item.path).read_bytes())
        prediction = predictor.predict(image[None])
        [answer] = predictor.classify(prediction, scores="all")
        assert row["label"] == answer.label
        assert row["confidence"] == pytest.approx(answer.confidence)
        assert row["embedding"] == prediction.embedding[0].tolist()
        assert [each["label"] for each in row["scores"]] == [s.label for s in answer.scores]
        assert (row["model"], row["version"], row["engine"]) == ("tiny", 1, "openvino")
        assert row["milliseconds"] is None


def test_rows_say_what_the_predictor_says_and_broken_images_have_their_reason(
    bundle: str, items: list[Item], predictor: Predictor
) -> None:
    worker = Worker(job(bundle))
    rows = worker.score(items).to_pylist()
    worker.close()
    assert worker.opened.images_per_batch == 1
    check(rows, items, predictor)


def test_an_engine_that_takes_batches_gets_whole_ones(
    bundle: str, items: list[Item], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Batched] = []

    def open_batched(*arguments: Any) -> Predictor:
        opened = open_predictor(*arguments)
        engines.append(Batched(opened.engine))
        return Predictor(opened.bundle, engines[0], opened.proof)

    monkeypatch.setattr(worker_module, "open_predictor", open_batched)
    worker = Worker(job(bundle))
    rows = worker.score(items).to_pylist()
    [row] = worker.score(items[:1]).to_pylist()
    worker.close()
    assert worker.opened.images_per_batch == 8
    assert set(engines[0].sizes) == {8}
    check(rows, items, predictor)
    assert row == rows[0]


def test_an_image_beyond_the_limits_is_not_read(bundle: str, items: list[Item]) -> None:
    worker = Worker(job(bundle, limits=ImageLimits(max_bytes=100)))
    found = worker.score(items[:1]).to_pylist()
    worker.close()
    assert found[0]["code"] == "image_too_large"
    assert found[0]["model"] is None


def test_many_lists_may_be_under_way_at_once(bundle: str, items: list[Item]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    worker = Worker(job(bundle))
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(worker.score, [items] * 12))
    worker.close()
    assert all(table.equals(tables[0]) for table in tables)


def test_of_an_image_with_a_box_only_that_is_looked_at(
    bundle: str, tmp_path: Path, predictor: Predictor
) -> None:
    spec = predictor.manifest.preprocess
    data = jpeg(1, size=96)
    write(tmp_path, {"a.jpg": data, "list.csv": b"path,box\na.jpg,\na.jpg,8 16 72 80\n"})
    write_packed(tmp_path / "packed", {"a.jpg": data}, box=(8, 16, 72, 80))
    members = {"a.jpg": data, "a.json": b'{"box": [8, 16, 72, 80]}'}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    worker = Worker(job(bundle))
    found = []
    for name in ("list.csv", "packed", "a.tar"):
        source = open_source(str(tmp_path / name), path_column="path", label_column=None)
        found += worker.score(list(source.items())).to_pylist()
    worker.close()
    expected = [
        predictor.predict(prepare(data, spec, box=box)[None]).embedding[0].tolist()
        for box in (None, (8, 16, 72, 80))
    ]
    assert expected[0] != expected[1]
    assert [row["embedding"] for row in found] == [expected[0], *[expected[1]] * 3]


def test_a_box_that_is_none_in_a_bucket_costs_one_row_of_those_read_together(
    bundle: str, s3_server: S3Server
) -> None:
    root = s3_server.make_bucket("score-boxes")
    members = {f"{n}.jpg": jpeg(n, size=64) for n in range(3)}
    members |= {"0.json": b'{"box": [8, 8, 40, 40]}', "1.json": b'{"box": "left half"}'}
    open_store(root).write("1.tar", tar_bytes(dict(sorted(members.items()))))
    source = open_source(f"{root}/1.tar", path_column="path", label_column=None)
    worker = Worker(job(bundle))
    table = worker.score(list(source.items()))
    worker.close()
    assert table["code"].to_pylist() == [None, "data", None]


def test_a_box_that_is_none_is_refused_with_its_row(tmp_path: Path) -> None:
    write(tmp_path, {"list.csv": b"path,box\na.jpg,\nb.jpg,8 16\n"})
    source = open_source(str(tmp_path / "list.csv"), path_column="path", label_column=None)
    with pytest.raises(DataError, match=r"row 2: 'box' says '8 16'; expected four numbers"):
        list(source.items())


@pytest.mark.parametrize("mode", ["streams", "batches"])
def test_an_image_of_which_the_engine_gives_no_numbers_fails_alone(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    black = io.BytesIO()
    Image.new("RGB", (24, 24)).save(black, "PNG")
    write(tmp_path, {"0.jpg": jpeg(0), "1.png": black.getvalue(), "2.jpg": jpeg(2)})
    source = open_source(str(tmp_path), path_column="path", label_column=None)
    open_sound = open_predictor

    def open_overflowing(*arguments: Any) -> Predictor:
        opened = open_sound(*arguments)
        opened.engine = Overflowing(opened.engine, mode)
        return opened

    monkeypatch.setattr(worker_module, "open_predictor", open_overflowing)
    worker = Worker(job(bundle))
    rows = worker.score(list(source.items())).to_pylist()
    assert [row["code"] for row in rows] == [None, "engine", None]
    assert "no finite numbers" in rows[1]["error"]
    assert rows[1]["confidence"] is None
    worker.close()


class Overflowing(Batched):
    """The engine, but that it gives no numbers of an image that is black."""

    def __init__(self, engine: Engine, mode: str) -> None:
        super().__init__(engine)
        self.feeding = Feeding(mode, parallel=1, max_batch=8)  # type: ignore[arg-type]

    def run(self, images: Images) -> dict[str, Any]:
        """Run them one by one."""
        found = super().run(images)
        found["probabilities"][images.reshape(len(images), -1).max(axis=1) == 0] = np.nan
        return found
