"""`python -m jobs.score`: what is scored, and what stands in the results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import BROKEN, class_files, huge_png, jpeg, write
from tests.jobs.score.conftest import Model, Shell, work_folder
from tests.jobs.score.serving import LIMITS


def rows(output: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a Parquet file by the names of their images."""
    found = pq.read_table(output).to_pylist()
    by_name = {Path(row["path"]).name: row for row in found}
    assert len(by_name) == len(found)
    return by_name


def test_every_image_of_a_folder_has_a_row_whatever_it_is_and_whatever_its_name(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    names = ["plain.jpg", "ünï 日本.JPG", "100% #1?.jpeg", "new\nline.jpg", "n" * 245 + ".jpg"]
    files = {f"deep/er/{name}": jpeg(n) for n, name in enumerate(names)} | dict(BROKEN)
    files |= {".hidden.jpg": jpeg(1), ".trash/a.jpg": jpeg(1), "notes.txt": b"no image"}
    files |= {"bomb.png": huge_png(4000), "vast.jpg": b"\xff" * (LIMITS.max_image_bytes + 1)}
    folder, output = tmp_path / "images", tmp_path / "scores.parquet"
    write(folder, files)
    Path(os.fsdecode(os.fsencode(folder) + b"/odd\xff.jpg")).write_bytes(jpeg(77))
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    ended = shell.run(folder, "--url", model.url, "--output", output, "--max-failed-share", 1)
    found = rows(output)
    failing = {
        **{"empty.jpg": "image_decode", "text.jpg": "image_type", "truncated.jpg": "image_decode"},
        **{"bomb.png": "image_too_large", "vast.jpg": "image_too_large"},
        **{"gone.jpg": "not_found", "pipe.jpg": "not_found"},
    }
    assert set(found) == {*names, *failing, r"odd\xff.jpg"}
    assert {name: row["code"] for name, row in found.items() if row["code"]} == failing
    for name, row in found.items():
        assert (row["label"] is None) == (row["confidence"] is None) == (name in failing)
        assert bool(row["error"]) == (name in failing)
    assert found["plain.jpg"]["path"] == str(folder / "deep/er/plain.jpg")
    assert ended.status == 0
    assert ended.line["num_images"] == len(found)
    assert ended.line["failures"] == {
        "image_decode": 2, "image_too_large": 2, "not_found": 2, "image_type": 1,
    }  # fmt: skip
    assert sum(ended.line["labels"].values()) == ended.line["num_scored"] == len(names) + 1
    assert not work_folder(output).exists()


def test_a_row_says_what_the_model_says(model: Model, shell: Shell, tmp_path: Path) -> None:
    import httpx

    write(tmp_path, {"a.jpg": jpeg(3)})
    shell.run(tmp_path / "a.jpg", "--url", model.url, "--output", tmp_path / "s.parquet")
    (row,) = rows(tmp_path / "s.parquet").values()
    told = httpx.post(f"{model.url}/classify", content=jpeg(3)).json()
    assert row.pop("milliseconds") > 0
    expected: dict[str, Any] = {
        **{"path": str(tmp_path / "a.jpg"), "label": told["label"], "error": None, "code": None},
        **{"model": "tiny", "version": 1, "engine": "openvino", "label_revision": None},
        "confidence": np.float32(told["confidence"]),
    }
    for rank, score in enumerate(told["scores"], start=1):
        expected |= {
            f"label_{rank}": score["label"],
            f"probability_{rank}": np.float32(score["probability"]),
        }
    assert row == expected


def test_rows_stand_in_the_order_of_the_names(model: Model, shell: Shell, tmp_path: Path) -> None:
    names = [f"{n:03}.jpg" for n in range(70)]
    write(tmp_path / "images", {name: jpeg(int(name[:3])) for name in reversed(names)})
    output = tmp_path / "s.parquet"
    shell.run(
        *(tmp_path / "images", "--url", model.url, "--output", output),
        *("--concurrency", 4, "--batch", 3),
    )
    assert list(rows(output)) == names
    assert 2 <= model.border.most_at_once <= 4
    assert model.border.num_images == 70


def test_all_scores_are_a_column_for_each_label(model: Model, shell: Shell, tmp_path: Path) -> None:
    write(tmp_path / "images", {"a.jpg": jpeg(1), "b.jpg": b"broken"})
    output = tmp_path / "s.parquet"
    common = (tmp_path / "images", "--url", model.url, "--overwrite", "--max-failed-share", 1)
    shell.run(*common, "--output", output, "--scores", "all")
    found = rows(output)
    columns = {"p_good", "p_dented", "p_torn"}
    assert columns <= set(found["a.jpg"])
    assert sum(found["a.jpg"][name] for name in columns) == pytest.approx(1, abs=1e-5)
    assert found["a.jpg"][f"p_{found['a.jpg']['label']}"] == found["a.jpg"]["confidence"]
    assert all(found["b.jpg"][name] is None for name in columns)
    shell.run(*common, "--output", output, "--scores", "none")
    assert not {"p_good", "label_1", "scores"} & set(rows(output)["a.jpg"])


def test_the_truth_of_class_folders_is_compared_with_the_answers(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    write(tmp_path / "images", class_files({"good": 5, "torn": 4}) | {"loose.jpg": jpeg(9)})
    output = tmp_path / "s.parquet"
    ended = shell.run(tmp_path / "images", "--url", model.url, "--output", output, "--truth")
    table = pd.read_parquet(output)
    known = table[table["truth"].notna()]
    assert sorted(known["truth"]) == ["good"] * 5 + ["torn"] * 4
    assert ended.line["num_with_truth"] == 9
    assert ended.line["accuracy"] == round((known["truth"] == known["label"]).mean(), 4)
    assert "confusion matrix" in ended.shown
    lone = tmp_path / "images" / "loose.jpg"
    ended = shell.run(lone, "--url", model.url, "--output", output, "--truth", "--overwrite")
    assert "no image has a truth" in ended.shown
    # With split folders above them, the class folders are one deeper.
    write(tmp_path / "splits", class_files({"test/good": 2, "train/torn": 1}))
    shell.run(
        *(tmp_path / "splits", "--url", model.url, "--output", output, "--truth", "--overwrite")
    )
    assert list(pd.read_parquet(output)["truth"]) == ["good", "good", "torn"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_manifest_gives_its_rows_in_its_order_with_its_paths(
    model: Model, shell: Shell, tmp_path: Path, suffix: str
) -> None:
    write(tmp_path, {"lists/b.jpg": jpeg(1), "a.jpg": jpeg(2)})
    paths = ["b.jpg", "../a.jpg", "missing.jpg", str(tmp_path / "a.jpg"), "b.jpg"]
    frame = pd.DataFrame({"file": paths, "verdict": ["good", "torn", "torn", "", "good"]})
    manifest = tmp_path / "lists" / f"list.{suffix}"
    if suffix == "csv":
        frame.to_csv(manifest, index=False)
    elif suffix == "jsonl":
        frame.to_json(manifest, orient="records", lines=True)
    else:
        frame.to_parquet(manifest)
    output = tmp_path / "s.parquet"
    ended = shell.run(
        *(manifest, "--url", model.url, "--output", output, "--path-column", "file", "--truth"),
        *("--label-column", "verdict", "--max-failed-share", 0.2),
    )
    table = pd.read_parquet(output)
    assert list(table["path"]) == paths
    assert list(table["truth"].fillna("")) == list(frame["verdict"])
    assert list(table["code"].fillna("")) == ["", "", "not_found", "", ""]
    assert ended.line["num_with_truth"] == 3
    assert "no column 'path'; it has 'file'" in shell.refused(
        manifest, "--url", model.url, "--output", tmp_path / "other.csv"
    )


def test_images_and_results_may_lie_in_a_bucket(
    model: Model, shell: Shell, s3_server: S3Server
) -> None:
    bucket = s3_server.make_bucket("score")
    store = open_store(bucket)
    write(store, {f"in/line {n}/ü{n}.jpg": jpeg(n) for n in range(5)} | {"in/bad.jpg": b"no"})
    write(store, {"in/vast.jpg": b"\xff" * (LIMITS.max_image_bytes + 1), "in/.x/a.jpg": jpeg(1)})
    arguments = ("--url", model.url, "--output", f"{bucket}/out/s.parquet")
    ended = shell.run(f"{bucket}/in", *arguments, "--truth", "--max-failed-share", 0.3)
    assert ended.status == 0
    assert ended.line["failures"] == {"image_type": 1, "image_too_large": 1}
    # Nothing but the finished file is left.
    assert [entry.key for entry in store.list("out")] == ["out/s.parquet"]
    import io

    table = pd.read_parquet(io.BytesIO(store.read("out/s.parquet")))
    assert set(table["path"]) == {f"{bucket}/in/line {n}/ü{n}.jpg" for n in range(5)} | {
        f"{bucket}/in/bad.jpg",
        f"{bucket}/in/vast.jpg",
    }
    assert set(table["truth"].dropna()) == {f"line {n}" for n in range(5)}
    assert "exists already" in shell.refused(f"{bucket}/in", *arguments)
    # A run that stops leaves its rows in the bucket, and goes on from there.
    other = ("--url", model.url, "--output", f"{bucket}/out/t.parquet", "--batch", 2)
    model.border.forbids_after = model.border.num_images + 4
    shell.refused(f"{bucket}/in", *other, "--concurrency", 1)
    model.border.forbids_after = 10**9
    assert store.exists("out/.t.parquet.parts/run.json")
    ended = shell.run(f"{bucket}/in", *other, "--resume", "--max-failed-share", 1)
    assert ended.line["num_images"] == 7
    assert ended.line["num_resumed"] >= 2
    store.delete("out/t.parquet")
    # A manifest in the bucket, results on the disk, and the other way round.
    store.write("lists/l.csv", b"path\n../in/line 1/\xc3\xbc1.jpg\n/in/none.jpg\n")
    ended = shell.run(f"{bucket}/lists/l.csv", *arguments, "--overwrite")
    assert (ended.status, ended.line["failures"]) == (1, {"not_found": 1})
    assert "holds no image" in shell.refused(
        f"{bucket}/nothing", "--url", model.url, "--output", f"{bucket}/out/none.csv"
    )
    assert [entry.key for entry in store.list("out")] == ["out/s.parquet"]


def test_embeddings_are_a_column_of_fixed_width(model: Model, shell: Shell, tmp_path: Path) -> None:
    import httpx

    write(tmp_path / "images", {"a.jpg": jpeg(1), "b.jpg": b"broken", "c.jpg": jpeg(2)})
    output = tmp_path / "s.parquet"
    vector = httpx.post(f"{model.url}/embed", content=jpeg(2)).json()["embedding"]
    common = (tmp_path / "images", "--output", output, "--overwrite", "--max-failed-share", 1)
    shell.run(*common, "--url", model.url, "--embeddings")
    table = pq.read_table(output)
    assert (
        str(table.schema.field("embedding").type)
        == f"fixed_size_list<element: float>[{len(vector)}]"
    )
    found = rows(output)
    assert found["c.jpg"]["embedding"] == [np.float32(each) for each in vector]
    assert found["c.jpg"]["label"]
    assert found["b.jpg"]["embedding"] is None
    # A model that has no labels has no columns for them.
    url = f"{model.server}/v2/models/tiny-embedding"
    shell.run(*common, "--url", url)
    found = rows(output)
    assert len(found["c.jpg"]["embedding"]) == len(vector)
    assert not {"label", "confidence", "label_1"} & set(found["c.jpg"])
    assert "give a name that ends with .parquet" in shell.refused(
        tmp_path / "images", "--url", url, "--output", tmp_path / "s.csv"
    )


def test_large_images_travel_fewer_to_a_request(model: Model, shell: Shell, tmp_path: Path) -> None:
    noise = {f"{n}.jpg": jpeg(n, size=450) for n in range(6)}
    assert all(120_000 < len(data) < LIMITS.max_image_bytes for data in noise.values())
    write(tmp_path / "images", noise)
    output = tmp_path / "s.parquet"
    ended = shell.run(tmp_path / "images", "--url", model.url, "--output", output, "--batch", 64)
    assert ended.line["num_scored"] == 6
    assert set(model.border.statuses) == {200}  # nothing was tried that the limits forbid


def test_a_spreadsheet_finds_no_formula_and_every_cell_can_be_had_back(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    names = ["=1+1.jpg", "+a.jpg", "-a.jpg", "@a.jpg", "'=a.jpg", "\uff1da.jpg", "a=b.jpg"]
    write(tmp_path, {name: jpeg(n) for n, name in enumerate(names)})
    manifest = tmp_path / "list.parquet"
    pd.DataFrame({"path": ["./" + names[0], *names[1:]], "label": names}).to_parquet(manifest)
    output = tmp_path / "s.csv"
    assert shell.run(manifest, "--url", model.url, "--output", output, "--truth").status == 0
    raw = output.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    table = pd.read_csv(output)
    texts = table["truth"]
    assert all(text[0] not in "=+-@\uff1d" for text in texts)
    assert list(texts.str.replace("^'", "", regex=True)) == names
    assert list(texts[:6]) == ["'" + name for name in names[:6]]
    assert table["confidence"].dtype == "float64"
    shell.run(
        *(manifest, "--url", model.url, "--truth", "--output", tmp_path / "s.parquet"),
    )
    assert list(pd.read_parquet(tmp_path / "s.parquet")["truth"]) == names


def test_too_many_failures_give_status_1_and_the_results_all_the_same(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    write(tmp_path / "images", {"a.jpg": jpeg(1), "b.jpg": b"broken"})
    output = tmp_path / "s.csv"
    ended = shell.run(tmp_path / "images", "--url", model.url, "--output", output)
    assert ended.status == 1
    assert "50.0% of the images have no answer" in ended.shown
    assert ended.line["num_failed"] == 1
    assert len(pd.read_csv(output)) == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_run_that_failed_does_not_succeed_by_being_asked_again(
    model: Model, shell: Shell, tmp_path: Path, suffix: str
) -> None:
    """What runs jobs tries them again with --resume, and took the second 0 for success."""
    write(tmp_path / "images", {"a.jpg": jpeg(1), "b.jpg": b"broken"})
    arguments = (tmp_path / "images", "--url", model.url, "--output", tmp_path / f"s.{suffix}")
    assert shell.run(*arguments).status == 1
    again = shell.run(*arguments, "--resume")
    assert (again.status, again.line["failed_share"]) == (1, 0.5)
    assert "finished already" in again.shown
    assert shell.run(*arguments, "--resume", "--max-failed-share", 0.5).status == 0


def test_existing_results_are_not_replaced_unless_told(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    write(tmp_path / "images", {"a.jpg": jpeg(1)})
    output = tmp_path / "s.csv"
    arguments = (tmp_path / "images", "--url", model.url, "--output", output)
    shell.run(*arguments)
    before = output.read_bytes()
    assert "exists already" in shell.refused(*arguments)
    assert shell.run(*arguments, "--resume").line == {
        "output": str(output),
        "is_finished_before": True,
        "failed_share": 0.0,
    }
    assert output.read_bytes() == before
    write(tmp_path / "images", {"b.jpg": jpeg(2)})
    assert shell.run(*arguments, "--overwrite").line["num_images"] == 2
    assert "give one of them" in shell.refused(*arguments, "--overwrite", "--resume")


def test_the_rows_can_be_read_as_a_manifest_again(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    write(tmp_path / "images", {f"ü {n}.jpg": jpeg(n) for n in range(3)})
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    shell.run(tmp_path / "images", "--url", model.url, "--output", first)
    ended = shell.run(first, "--url", model.url, "--output", second, "--truth")
    assert ended.line["accuracy"] == 1.0


def test_a_key_is_sent_and_never_shown_or_stored(
    model: Model, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.border.key = "s3cret"
    write(tmp_path / "images", {"a.jpg": jpeg(1)})
    arguments = (tmp_path / "images", "--url", model.url, "--output", tmp_path / "s.csv")
    assert "into the environment variable SIGHTLINE_KEY" in shell.refused(*arguments)
    monkeypatch.setenv("LINE_KEY", "wr0ng")
    shown = shell.refused(*arguments, "--key-env", "LINE_KEY")
    assert "The access key in LINE_KEY is not known there" in shown
    assert "wr0ng" not in shown
    assert "OTHER is not set" in shell.refused(*arguments, "--key-env", "OTHER")
    monkeypatch.setenv("SIGHTLINE_KEY", "s3cret\n")
    ended = shell.run(*arguments)
    assert ended.status == 0
    assert "s3cret" not in json.dumps(ended.line) + ended.shown


def test_a_wrong_address_is_answered_with_the_models_there(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    write(tmp_path / "images", {"a.jpg": jpeg(1)})
    output = tmp_path / "s.csv"

    def refused(url: str) -> str:
        return shell.refused(
            tmp_path / "images", "--url", url, "--output", output, "--patience", "0.3"
        )

    listed = f"The models there: {model.url}, {model.url}-embedding"
    assert listed in refused(model.server)
    assert listed in refused(f"{model.server}/v2/models/tinny")
    assert listed in refused(f"{model.server}/")
    assert "is no address" in refused("localhost:8000/v2/models/tiny")
    assert "neither a user nor a query" in refused("http://user:pass@localhost/v2/models/tiny")
    assert "cannot connect to" in refused("http://127.0.0.1:9/v2/models/tiny")
    assert not work_folder(output).exists()


def test_wrong_options_are_refused_before_anything_is_scored(
    model: Model, shell: Shell, tmp_path: Path
) -> None:
    write(tmp_path / "images", {"a.jpg": jpeg(1)})
    (tmp_path / "empty").mkdir()
    good = ("--url", model.url, "--output", tmp_path / "s.csv")
    images = tmp_path / "images"
    assert "does not exist" in shell.refused(tmp_path / "none", *good)
    assert "holds no image" in shell.refused(tmp_path / "empty", *good)
    assert "expected .parquet or .csv" in shell.refused(
        images, "--url", model.url, "--output", tmp_path / "s.xlsx"
    )
    assert "do not change" in shell.refused(images, *good, "--min-revision", 3)
    assert "do not go into CSV" in shell.refused(images, *good, "--embeddings")
    assert shell.run(images, *good, "--batch", "0").status == 2
    assert model.border.num_images == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "images"]


def test_one_way_is_to_be_given_and_the_options_of_the_other_are_refused(
    shell: Shell, tmp_path: Path
) -> None:
    output = tmp_path / "s.csv"
    url, bundle = ("--url", "http://localhost/v2/models/x"), ("--bundle", "models/x/1")

    def refused(*arguments: object) -> str:
        return shell.refused(tmp_path, *arguments)

    assert "give either --bundle" in refused(output)
    assert "give either --bundle" in refused(output, *url, *bundle)
    assert "give the output once" in refused(*url)
    assert "give the output once" in refused(output, *url, "--output", output)
    assert "--batch, --timeout does not go with --bundle" in refused(
        output, *bundle, "--timeout", 3, "--batch", 2
    )
    assert "--key-env does not go with --bundle" in refused(output, *bundle, "--key-env", "KEY")
    assert "--workers does not go with --url" in refused(output, *url, "--workers", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scores", ["all", "none"])
def test_a_number_of_labels_for_scores_that_have_none_is_refused(
    model: Model, shell: Shell, tmp_path: Path, scores: str
) -> None:
    how = ("--url", model.url, "--top-k", 2, "--scores", scores)
    shown = shell.refused(tmp_path, tmp_path / "s.csv", *how)
    assert f"--top-k says how many labels --scores top lists, but --scores {scores} lists" in shown


def test_the_output_may_stand_behind_options(model: Model, shell: Shell, tmp_path: Path) -> None:
    write(tmp_path / "images", {"a.jpg": jpeg(1)})
    ended = shell.run(tmp_path / "images", "--url", model.url, tmp_path / "s.csv")
    assert (ended.status, ended.line["engines"]) == (0, {"openvino": 1})


def test_labels_of_a_bundle_whose_labels_do_not_change_are_refused(
    bundle: str, shell: Shell, tmp_path: Path
) -> None:
    write(tmp_path / "images", {"a.jpg": jpeg(1)})
    arguments = (tmp_path / "images", tmp_path / "s.csv", "--bundle", bundle)
    assert "whose labels do not change" in shell.refused(*arguments, "--labels", tmp_path)
    assert "do not change" in shell.refused(*arguments, "--min-revision", 3)
    missing = shell.refused(tmp_path / "images", tmp_path / "s.csv", "--bundle", bundle + "0")
    assert "there are 1" in missing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_submitted_job_may_not_leave_its_output_in_the_copy_of_the_code(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "pkg"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    shown = shell.refused(tmp_path, "scores.parquet", "--bundle", "models/x/1")
    assert "the output is the relative path 'scores.parquet'" in shown
