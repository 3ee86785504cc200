from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.session import Session
from jobs.data.config import DataConfig
from jobs.data.examine import examine_image
from jobs.data.index import Index, build_index
from jobs.data.places import Place, read_each
from jobs.data.quarantine import keep_quarantine
from models.decoders import DEFAULT_LIMITS, ImageLimits
from models.errors import AccessError, DataError, NotFoundError
from models.preprocess import PreprocessSpec
from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import BROKEN, class_files, huge_png, jpeg, write

pytestmark = pytest.mark.ray

SPEC = PreprocessSpec(height=16, width=16)
TWO = {"bad": 12, "ok": 30}


def index_of(uri: Path | str, **settings: Any) -> Index:
    return build_index(DataConfig(uri=str(uri), **settings), SPEC)


def test_every_image_is_indexed_once_and_in_the_order_of_the_paths(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, class_files(TWO))
    seen: list[tuple[int, int]] = []
    config = DataConfig(uri=str(tmp_path), images_per_task=10)
    index = build_index(config, SPEC, lambda done, total: seen.append((done, total)))
    assert index.classes == ("bad", "ok")
    paths = index.table["path"].to_pylist()
    assert paths == sorted(f"{tmp_path}/{name}" for name in class_files(TWO))
    assert index.table["label"].to_pylist() == [0] * 12 + [1] * 30
    assert index.num_images() == 42
    assert sum(index.counts["ok"].values()) == 30
    assert seen[-1] == (42, 42)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert build_index(config, SPEC).table.equals(index.table)


def test_broken_images_are_quarantined_with_their_reasons(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, class_files({"ok": 90, "bad": 30}))
    write(tmp_path / "ok", {**BROKEN, "huge.png": huge_png()})
    index = index_of(tmp_path)
    reasons = {Path(broken.path).name: broken.reason for broken in index.quarantine}
    assert set(reasons) == {*BROKEN, "huge.png"}
    assert "not an image" in reasons["text.jpg"]
    assert "0 bytes" in reasons["empty.jpg"]
    assert "damaged JPEG" in reasons["truncated.jpg"]
    assert "20,000 x 20,000" in reasons["huge.png"]
    assert index.num_images() == 120

    where = keep_quarantine(index.quarantine, str(tmp_path), "run", "quarantine.jsonl")
    assert where == str(tmp_path / "run" / "quarantine.jsonl")
    lines = Path(where).read_text().splitlines()
    assert len(lines) == 4
    assert {Path(json.loads(line)["path"]).name for line in lines} == set(reasons)


def test_too_many_broken_images_end_the_run_with_examples(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, class_files(TWO))
    write(tmp_path / "ok", BROKEN)
    with pytest.raises(DataError) as caught:
        index_of(tmp_path)
    message = str(caught.value)
    assert "3 of 45 images" in message
    assert "data.max_broken_share = 5.0%" in message
    assert "ok/text.jpg: not an image" in message
    assert index_of(tmp_path, max_broken_share=0.1).num_images() == 42


def test_files_that_a_manifest_names_but_are_missing_are_quarantined(
    ray_session: Session, tmp_path: Path
) -> None:
    files = class_files(TWO)
    write(tmp_path, files)
    lines = ["path,label", *(f"{name},{name.split('/')[0]}" for name in files)]
    (tmp_path / "list.csv").write_text("\n".join([*lines, "ok/gone.jpg,ok"]))
    index = index_of(tmp_path / "list.csv", source="manifest")
    assert [broken.path for broken in index.quarantine] == [f"{tmp_path}/ok/gone.jpg"]
    assert "there is no such object" in index.quarantine[0].reason
    assert index.num_images() == 42


def test_a_file_that_cannot_be_read_is_that_images_fault_alone(tmp_path: Path) -> None:
    """One among thousands once ended the run."""
    (data,) = read_each([Place(str(tmp_path))], lambda _, data: data, limits=DEFAULT_LIMITS)
    found = examine_image(data, SPEC, ImageLimits())
    assert found.sha256 == ""
    assert str(tmp_path) in found.reason


def test_a_set_of_broken_images_only_is_refused(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path, {"ok/a.jpg": b"", "bad/b.jpg": b""})
    with pytest.raises(DataError, match="no usable image among 2"):
        index_of(tmp_path, max_broken_share=1)


def test_a_class_whose_training_images_are_all_broken_is_refused(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, {**class_files({"ok": 40}), "bad/a.jpg": b""})
    with pytest.raises(DataError, match="no usable training image of 'bad'"):
        index_of(tmp_path)


def test_a_configured_class_without_an_image_is_refused(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path, class_files(TWO))
    with pytest.raises(DataError, match="no usable training image of 'scratch'"):
        index_of(tmp_path, classes=["ok", "bad", "scratch"])


def test_a_class_of_three_images_is_warned_of(ray_session: Session, tmp_path: Path) -> None:
    files = {f"train/{name}": data for name, data in class_files({"ok": 60, "rare": 3}).items()}
    write(tmp_path, {**files, "val/ok/a.jpg": jpeg(900), "test/ok/a.jpg": jpeg(901)})
    index = index_of(tmp_path)
    assert "no validation image of 'rare': no figure for them there" in index.warnings
    assert "no test image of 'rare': no figure for them there" in index.warnings
    assert any("fewer than 50 images of 'rare' (3)" in warning for warning in index.warnings)


def test_a_missing_validation_split_comes_out_of_train(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path / "train", class_files({"ok": 60, "bad": 60}))
    write(tmp_path / "test", class_files({"ok": 10, "bad": 10}, start=500))
    index = index_of(tmp_path, split={"train": 0.5, "validation": 0.4, "test": 0.1})
    assert index.num_images("test") == 20
    assert 20 < index.num_images("validation") < 80
    assert index.num_images("train") + index.num_images("validation") == 120


def test_copies_stay_on_one_side_and_copies_across_given_splits_are_reported(
    ray_session: Session, tmp_path: Path
) -> None:
    images = class_files(TWO)
    copies = {name.replace("/", "/copy-"): data for name, data in images.items()}
    write(tmp_path / "free", {**images, **copies})
    index = index_of(tmp_path / "free")
    where = set(
        zip(index.table["sha256"].to_pylist(), index.table["split"].to_pylist(), strict=True)
    )
    assert index.num_images() == 84
    assert len(where) == 42
    assert index.crossing == ()

    write(tmp_path / "given" / "train", images)
    write(tmp_path / "given" / "test", {"ok/t.jpg": images["ok/0003.jpg"]})
    index = index_of(tmp_path / "given", split={"train": 1, "validation": 0, "test": 0})
    assert index.crossing == (
        (f"{tmp_path}/given/test/ok/t.jpg", f"{tmp_path}/given/train/ok/0003.jpg"),
    )
    assert any("1 images lie in more than one" in warning for warning in index.warnings)


def test_ignored_files_are_counted_in_a_warning(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path, {**class_files(TWO), "README.md": b"", "ok/notes.txt": b""})
    index = index_of(tmp_path)
    assert index.ignored == 2
    assert "2 files are not images by their names and were ignored" in index.warnings


def test_one_picture_under_two_labels_is_warned_of(ray_session: Session, tmp_path: Path) -> None:
    images = class_files(TWO)
    write(tmp_path, {**images, "bad/torn.jpg": images["ok/0000.jpg"]})
    assert "1 images have copies under two labels" in index_of(tmp_path).warnings


def test_a_set_in_a_bucket_is_indexed(ray_session: Session, s3_server: S3Server) -> None:
    uri = s3_server.make_bucket("index") + "/set"
    write(open_store(uri), {**class_files(TWO), "ok/text.jpg": BROKEN["text.jpg"]})
    index = index_of(uri)
    assert index.num_images() == 42
    assert [broken.path for broken in index.quarantine] == [f"{uri}/ok/text.jpg"]


def test_a_bucket_that_is_not_there_is_a_storage_error(
    ray_session: Session, s3_server: S3Server
) -> None:
    with pytest.raises(NotFoundError, match="'index-nowhere' does not exist"):
        index_of("s3://index-nowhere/set")


def test_a_key_that_may_not_read_is_an_access_error_and_no_traceback_of_ray(
    ray_session: Session, s3_server: S3Server, tmp_path: Path
) -> None:
    uri = s3_server.make_bucket("index-refused")
    lines = ["path,label", *(f"{uri}/{number}.jpg,{number % 2}" for number in range(4))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    httpx.post(f"{s3_server.endpoint}/moto-api/reset-auth", content=b"0").raise_for_status()
    try:
        with pytest.raises(AccessError, match="refused the credentials") as caught:
            index_of(tmp_path / "list.csv", source="manifest")
    finally:
        httpx.post(f"{s3_server.endpoint}/moto-api/reset-auth", content=b"inf").raise_for_status()
    assert caught.value.__cause__ is None
    assert "Ray" not in str(caught.value)
