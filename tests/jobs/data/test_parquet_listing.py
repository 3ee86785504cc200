"""Parquet with images that others wrote."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

from cluster.session import Session
from jobs.data.config import DataConfig
from jobs.data.index import Index, build_index
from jobs.data.manifest import read_table
from jobs.data.pack_plan import PackOptions
from jobs.data.packing import run_packing
from jobs.data.places import Place, read_each
from jobs.data.streams import IndexedImages
from models.decoders import DEFAULT_LIMITS
from models.errors import DataError
from models.preprocess import PreprocessSpec, prepare
from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import jpeg

SPEC = PreprocessSpec(height=16, width=16)
NAMES = ["good", "bad"]
HUGGING_FACE = {
    b"huggingface": json.dumps(
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": NAMES}}}}
    ).encode()
}


def write_rows(
    path: Path, start: int, count: int, *, with_names: bool = True, **columns: list[Any]
) -> None:
    """Write images as the datasets library does: structs, numbered labels, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(start, start + count)],
            "label": pa.array([n % 2 for n in range(start, start + count)], pa.int64()),
            **columns,
        }
    )
    if with_names:
        table = table.replace_schema_metadata(HUGGING_FACE)
    pyarrow.parquet.write_table(table, path, row_group_size=10, compression="snappy")


def index_of(uri: Path | str, **settings: Any) -> Index:
    return build_index(DataConfig(source="packed", uri=str(uri), **settings), SPEC)


@pytest.mark.ray
def test_rows_are_images_with_the_names_of_their_classes(
    ray_session: Session, tmp_path: Path
) -> None:
    write_rows(tmp_path / "train-00000-of-00002.parquet", 0, 37)
    write_rows(tmp_path / "train-00001-of-00002.parquet", 37, 23)
    write_rows(tmp_path / "test-00000-of-00001.parquet", 60, 20)
    index = index_of(tmp_path, split={"train": 1, "validation": 0, "test": 0})
    assert index.classes == ("bad", "good")
    assert (index.num_images("train"), index.num_images("test")) == (60, 20)
    assert any("pack it before" in warning for warning in index.warnings)
    images = IndexedImages(index, SPEC)
    assert images.labels("train").tolist() == [1 - n % 2 for n in range(60)]
    for batch in images.batches("train", batch_size=16, shuffle=True):
        for picture, row in zip(batch.images, batch.ids.tolist(), strict=True):
            np.testing.assert_array_equal(picture, prepare(jpeg(row), SPEC))
    assert not images.broken


@pytest.mark.ray
def test_packing_them_gives_a_set_like_any_other(
    ray_session: Session, s3_server: S3Server, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.parquet", 0, 40, weight=[1.0] * 39 + [None])
    bucket = s3_server.make_bucket("foreign")
    open_store(bucket).write("in/a.parquet", (tmp_path / "a.parquet").read_bytes())
    config = DataConfig(source="packed", uri=f"{bucket}/in")
    run_packing(config, PackOptions(uri=f"{bucket}/out"), Console(file=io.StringIO()))
    index = index_of(f"{bucket}/out")
    assert index.table["path"].to_pylist() == [f"a.parquet#{row:08}" for row in range(40)]
    assert index.table["weight"].null_count == 1
    data = open_store(f"{bucket}/out").read("part-00000.parquet")
    packed = pyarrow.parquet.read_table(pa.BufferReader(data))
    for image, path in zip(packed["image"].to_pylist(), packed["path"].to_pylist(), strict=True):
        assert image == jpeg(int(path[-8:]))


@pytest.mark.ray
def test_a_missing_or_damaged_image_is_left_out_alone(ray_session: Session, tmp_path: Path) -> None:
    images = [jpeg(n) for n in range(40)]
    table = pa.table({"image": [None, b"no image", *images], "label": ["a", "b"] * 21})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    index = index_of(tmp_path, max_broken_share=0.1)
    reasons = {broken.path[-2:]: broken.reason for broken in index.quarantine}
    assert "has no image in row 0" in reasons["00"]
    assert "not an image" in reasons["01"]
    assert index.num_images() == 40


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": [1], "label": ["a"]}, "a column of type int64 called 'image'"),
        ({"picture": [b""], "label": ["a"]}, "has no column 'image'"),
        ({"image": [b""], "class": ["a"]}, r"has no column 'label'; .* set data.label_column"),
        ({"image": [b""], "label": [None]}, "column 'label' is blank in row 0"),
        ({"image": [b""], "label": [math.nan]}, "column 'label' is blank in row 0"),
        ({"image": [b""], "label": [b"ok"]}, "column 'label' is of type binary; expected text or"),
        ({"image": [b""], "label": [["ok"]]}, r"column 'label' is of type list.*; expected text"),
        ({"image": [b""], "label": ["a"], "weight": [-1.0]}, "says '-1.0' in row 0; expected a"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], told: str
) -> None:
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=told):
        index_of(tmp_path)


def test_what_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is how it begins")
    with pytest.raises(DataError, match=r"a.parquet cannot be read as Parquet"):
        index_of(tmp_path)


def test_a_number_without_a_name_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", 0, 2)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    table = table.set_column(1, "label", pa.array([0, 7]))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="says '7' in row 1; expected a number below 2"):
        index_of(tmp_path)


def test_many_threads_read_a_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "a.parquet", 0, 60)
    fetched: list[int] = []
    fetch = pyarrow.parquet.ParquetFile.read_row_group

    def count(self: Any, group: int, **options: Any) -> Any:
        fetched.append(group)
        return fetch(self, group, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", count)
    places = [Place("x", str(tmp_path / "a.parquet"), -1 - row) for row in range(20)]
    images = read_each(places, lambda _, data: data, threads=16, limits=DEFAULT_LIMITS)
    assert images == [jpeg(n) for n in range(20)]
    assert sorted(fetched) == [0, 1]
    write_rows(tmp_path / "b.parquet", 100, 60)
    (tmp_path / "b.parquet").replace(tmp_path / "a.parquet")
    assert read_each(places[:1], lambda _, data: data, limits=DEFAULT_LIMITS) == [jpeg(100)]


@pytest.mark.ray
def test_a_damaged_row_group_is_the_fault_of_its_images(
    ray_session: Session, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [jpeg(n) for n in range(40)], "label": ["a", "b"] * 20})
    pyarrow.parquet.write_table(table, path, row_group_size=10)
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    index = index_of(tmp_path, max_broken_share=0.3)
    assert index.num_images() == 30
    assert len(index.quarantine) == 10
    assert "cannot be read as Parquet" in index.quarantine[0].reason


def test_a_manifest_with_a_damaged_page_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    table = pa.table({"path": [f"{n}.jpg" for n in range(2000)], "label": ["a", "b"] * 1000})
    pyarrow.parquet.write_table(table, path)
    data = bytearray(path.read_bytes())
    data[20:2000] = b"\xff" * 1980
    with pytest.raises(DataError, match=r"manifest list.parquet cannot be read as .parquet"):
        read_table("list.parquet", "list.parquet", bytes(data))
