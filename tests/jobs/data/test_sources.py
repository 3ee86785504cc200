from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from jobs.config import load_section
from jobs.data.config import DataConfig
from jobs.data.labels import drop_labels, number_labels, refuse_empty, refuse_unservable
from jobs.data.manifest import parse_box
from jobs.data.sources import Listing, list_source
from models.errors import AccessError, DataError, NotFoundError
from models.storage import open_store
from tests.conftest import S3Server
from tests.jobs.data.images import class_files, write

IMAGE = b"listing never looks inside"
TWO = {"ok": 2, "bad": 1}


def folder(uri: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(uri=str(uri), **settings)


def manifest(uri: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(source="manifest", uri=str(uri), **settings)


def rows(listing: Listing) -> list[tuple[str, str, str | None]]:
    columns = listing.table.to_pydict()
    found = zip(columns["path"], columns["label"], columns["split"], strict=True)
    return sorted(found, key=lambda row: row[0])


def refusal(config: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        list_and_number(config)
    return str(caught.value)


def list_and_number(config: DataConfig) -> None:
    listing = list_source(config)
    refuse_empty(config.uri, listing.empty)
    number_labels(listing.table, config)


# Folders


def test_a_folder_lists_images_below_their_class(tmp_path: Path) -> None:
    write(tmp_path, {"ok/a.jpg": IMAGE, "ok/deep/er/b.PNG": IMAGE, "bad/c d#ü%20.jpeg": IMAGE})
    assert rows(list_source(folder(tmp_path))) == [
        (f"{tmp_path}/bad/c d#ü%20.jpeg", "bad", None),
        (f"{tmp_path}/ok/a.jpg", "ok", None),
        (f"{tmp_path}/ok/deep/er/b.PNG", "ok", None),
    ]


def test_files_that_are_no_images_or_hidden_are_ignored_and_counted(tmp_path: Path) -> None:
    write(tmp_path, class_files(TWO))
    write(
        tmp_path,
        {
            "README.md": b"",
            "ok/labels.txt": b"",
            "ok/.cache/a.jpg": IMAGE,
            "__MACOSX/ok/a.jpg": IMAGE,
            ".git/x.jpg": IMAGE,
        },
    )
    listing = list_source(folder(tmp_path))
    assert listing.table.num_rows == 3
    assert listing.ignored == 5


def test_an_image_outside_of_a_class_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, {**class_files(TWO), "loose.jpg": IMAGE})
    listing = list_source(folder(tmp_path))
    assert listing.table.num_rows == 3
    assert "loose.jpg" in listing.warnings[0]


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
def test_split_folders_give_the_split(tmp_path: Path, validation: str) -> None:
    files = {
        f"{split}/{name}": data
        for split in ("train", validation, "test")
        for name, data in class_files(TWO).items()
    }
    write(tmp_path, files)
    listing = list_source(folder(tmp_path))
    assert Counter(listing.table["split"].to_pylist()) == {"train": 3, "validation": 3, "test": 3}
    assert set(listing.table["label"].to_pylist()) == {"ok", "bad"}


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    write(tmp_path, class_files({"test": 2, "spare": 2}))
    listing = list_source(folder(tmp_path))
    assert set(listing.table["label"].to_pylist()) == {"test", "spare"}
    assert listing.table["split"].null_count == 4


def test_splits_mixed_with_classes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, class_files({"train": 1, "test": 1, "ok": 1}))
    message = refusal(folder(tmp_path))
    assert "mixes split folders (test, train) with others (ok)" in message


def test_splits_without_train_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"test/ok/a.jpg": IMAGE, "val/ok/a.jpg": IMAGE})
    assert "none for training" in refusal(folder(tmp_path))


@pytest.mark.parametrize("empty", ["scratch", "notes"])
def test_an_empty_class_is_refused_by_name(tmp_path: Path, empty: str) -> None:
    write(tmp_path, {**class_files(TWO), "notes/readme.txt": b""})
    (tmp_path / "scratch").mkdir()
    message = refusal(folder(tmp_path))
    assert "class folder without an image" in message
    assert empty in message
    assert "ok" not in message.split(":")[1]


def test_an_empty_class_in_a_split_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"train/ok/a.jpg": IMAGE, "train/bad/a.jpg": IMAGE, "test/ok/a.jpg": IMAGE})
    (tmp_path / "test" / "bad").mkdir()
    assert "test/bad" in refusal(folder(tmp_path))


def test_one_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path, class_files({"ok": 3}))
    assert "one class only, 'ok'" in refusal(folder(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"readme.txt": b""})
    assert "holds no image that has a label (1 other files)" in refusal(folder(tmp_path))


@pytest.mark.parametrize(
    ("name", "source"), [("pack.json", "packed"), ("000.tar", "webdataset"), ("a.csv", None)]
)
def test_a_folder_that_is_another_source_says_which(
    tmp_path: Path, name: str, source: str | None
) -> None:
    write(tmp_path, {name: b""})
    told = refusal(folder(tmp_path))
    assert "holds no image" in told
    assert (f"say source={source} (data.source={source} in training)" in told) == bool(source)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        list_source(folder(tmp_path / "nowhere"))


# Labels


@pytest.mark.parametrize("twin", ["OK", "ok ", "\uff4f\uff4b"])
def test_labels_that_look_alike_are_refused_naming_both(tmp_path: Path, twin: str) -> None:
    write(tmp_path, class_files({"ok": 1, twin: 1, "bad": 1}))
    message = refusal(folder(tmp_path))
    assert "'ok'" in message
    assert repr(twin) in message
    assert "data.rename" in message


def test_a_rename_makes_one_class_of_labels_that_look_alike(tmp_path: Path) -> None:
    write(tmp_path, class_files({"ok": 1, "OK": 1, "bad": 1}))
    config = folder(tmp_path, rename={"OK": "ok"})
    labels, classes = number_labels(list_source(config).table.sort_by("path"), config)
    assert classes == ("bad", "ok")
    assert sorted(labels.tolist()) == [0, 1, 1]


def test_a_rename_of_a_label_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path, class_files(TWO))
    assert "'okk'" in refusal(folder(tmp_path, rename={"okk": "fine"}))
    assert "did you mean 'ok'?" in refusal(folder(tmp_path, rename={"okk": "fine"}))


def test_configured_classes_fix_the_order(tmp_path: Path) -> None:
    write(tmp_path, class_files(TWO))
    config = folder(tmp_path, classes=["ok", "bad"])
    labels, classes = number_labels(list_source(config).table.sort_by("path"), config)
    assert classes == ("ok", "bad")
    assert labels.tolist() == [1, 0, 0]


def test_a_label_that_the_configured_classes_lack_is_refused(tmp_path: Path) -> None:
    write(tmp_path, class_files(TWO))
    message = refusal(folder(tmp_path, classes=["ok", "scratch"]))
    assert "'bad'" in message


def test_a_class_in_test_that_train_lacks_is_refused(tmp_path: Path) -> None:
    files = {"train/ok/a.jpg": IMAGE, "train/bad/a.jpg": IMAGE, "test/new/a.jpg": IMAGE}
    write(tmp_path, files)
    assert "train lacks: 'new'" in refusal(folder(tmp_path))


# Manifests


def csv_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_gives_paths_relative_to_its_folder_absolute_or_as_uri(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path,
        "path,label,split\na.jpg,ok,train\n../b/./c.jpg,bad,val\n"
        "/data/d.jpg,ok,\ns3://bucket/e.jpg,bad,TEST\nsub\\f.jpg,ok,test\n",
    )
    assert rows(list_source(manifest(path))) == sorted(
        [
            (f"{tmp_path}/a.jpg", "ok", "train"),
            (f"{tmp_path.parent}/b/c.jpg", "bad", "validation"),
            ("/data/d.jpg", "ok", None),
            ("s3://bucket/e.jpg", "bad", "test"),
            (f"{tmp_path}/sub/f.jpg", "ok", "test"),
        ]
    )


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-8"), (",", "utf-8")]
)
def test_a_csv_as_spreadsheets_write_it_is_read(
    tmp_path: Path, delimiter: str, encoding: str
) -> None:
    lines = ["path,label", '"a,1.jpg",01', "b.jpg,NA", "c.jpg,1"]
    text = "\r\n".join(lines).replace(",", delimiter).replace(f"a{delimiter}1", "a_1") + "\r\n"
    found = rows(list_source(manifest(csv_file(tmp_path, text, encoding))))
    assert [(Path(path).name, label) for path, label, _ in found] == [
        ("a_1.jpg", "01"),
        ("b.jpg", "NA"),
        ("c.jpg", "1"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_the_last_column_of_a_csv_is_text_whatever_ends_its_lines(tmp_path: Path, end: str) -> None:
    text = end.join(["path,label", "a.jpg,01", "b.jpg,1", ""])
    found = rows(list_source(manifest(csv_file(tmp_path, text))))
    assert [label for _, label, _ in found] == ["01", "1"]


def test_a_csv_without_a_label_column_is_refused_with_the_columns_it_has(tmp_path: Path) -> None:
    message = refusal(manifest(csv_file(tmp_path, "path,class\na.jpg,ok\n")))
    assert "no column 'label'; it has 'path', 'class'; set data.label_column" in message


@pytest.mark.parametrize("column", ["path", "label", "split"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, column: str) -> None:
    path = csv_file(tmp_path, f"path,label,split,{column}\na.jpg,ok,train,x\n")
    assert f"has the column {column!r} more than once" in refusal(manifest(path))


def test_other_column_names_can_be_configured(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "file,class,fold\na.jpg,ok,train\nb.jpg,bad,test\n")
    config = manifest(path, path_column="file", label_column="class", split_column="fold")
    assert [row[1:] for row in rows(list_source(config))] == [("ok", "train"), ("bad", "test")]


def test_a_configured_split_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "path,label\na.jpg,ok\n")
    assert "set data.split_column" in refusal(manifest(path, split_column="fold"))


def test_a_blank_label_is_refused_with_its_row(tmp_path: Path) -> None:
    message = refusal(manifest(csv_file(tmp_path, "path,label\na.jpg,ok\nb.jpg,\nc.jpg, \n")))
    assert "column 'label' is blank in 2 of 3 rows (row 2, 3" in message


def test_an_unknown_split_is_refused_with_its_row(tmp_path: Path) -> None:
    message = refusal(manifest(csv_file(tmp_path, "path,label,split\na.jpg,ok,holdout\n")))
    assert "'holdout' in row 1" in message


def test_json_lines_give_rows_and_numbers_become_labels(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    lines = [{"path": "a.jpg", "label": 1}, {"path": "b.jpg", "label": "x", "split": "test"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [row[1:] for row in rows(list_source(manifest(path)))] == [("1", None), ("x", "test")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"path": "a.jpg"\n', "line 1 is not JSON"),
        ('{"path": "a", "label": "b"}\n[1]\n', "line 2 is not a JSON object but list"),
        ('{"path": "a.jpg", "label": null}\n', "blank in 1 of 1 rows"),
        ('{"path": "a.jpg", "class": "b"}\n', "no column 'label'; it has 'path', 'class'"),
        ('{"path": "a.jpg", "label": ["b"]}\n', """line 1: 'label' is ["b"]; expected text"""),
        ('{"path": {"x": 1}, "label": "b"}\n', """line 1: 'path' is {"x":1}; expected text"""),
    ],
)
def test_broken_json_lines_are_refused_with_their_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(text)
    assert expected in refusal(manifest(path))


def test_parquet_gives_rows_also_with_dictionary_columns(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    labels = pa.array(["ok", "bad", "ok"]).dictionary_encode()
    table = pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "label": labels})
    pyarrow.parquet.write_table(table, path)
    assert [row[1] for row in rows(list_source(manifest(path)))] == ["ok", "bad", "ok"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.parquet", b"no parquet"),
        ("list.csv", b"path,label\na,b,c\n"),
        ("list.csv", b""),
        ("list.csv", "path,label\na.jpg,gr\u00fcn\n".encode("latin-1")),
        ("list.csv", "p\u00e4th,label\na.jpg,b\n".encode("latin-1")),
        ("list.xlsx", b""),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    assert str(tmp_path / name) in refusal(manifest(tmp_path / name))


def test_a_manifest_without_rows_is_refused(tmp_path: Path) -> None:
    assert "holds no image" in refusal(manifest(csv_file(tmp_path, "path,label\n")))


def test_a_manifest_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.csv"):
        list_source(manifest(tmp_path / "nothing.csv"))


# The same on an object store


def test_a_bucket_lists_like_a_folder(s3_server: S3Server) -> None:
    uri = s3_server.make_bucket("sources-folder") + "/set"
    write(open_store(uri), {"train/ok/a b#.jpg": IMAGE, "train/bad/a.jpg": IMAGE, "x.txt": b""})
    write(open_store(uri), {"test/ok/1.jpg": IMAGE})
    listing = list_source(folder(uri))
    assert listing.ignored == 1
    assert rows(listing) == [
        (f"{uri}/test/ok/1.jpg", "ok", "test"),
        (f"{uri}/train/bad/a.jpg", "bad", "train"),
        (f"{uri}/train/ok/a b#.jpg", "ok", "train"),
    ]


@pytest.mark.slow
def test_a_bucket_lists_more_objects_than_one_page_has(s3_server: S3Server) -> None:
    uri = s3_server.make_bucket("sources-many")
    write(open_store(uri), {f"{number % 2}/{number}.jpg": b"" for number in range(1_100)})
    assert list_source(folder(uri)).table.num_rows == 1_100


def test_a_manifest_in_a_bucket_names_images_beside_it(s3_server: S3Server) -> None:
    uri = s3_server.make_bucket("sources-manifest") + "/lists/one.parquet"
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"path": ["../a.jpg"], "label": ["ok"]}), buffer)
    write(open_store("s3://sources-manifest"), {"lists/one.parquet": buffer.getvalue()})
    assert rows(list_source(manifest(uri))) == [("s3://sources-manifest/a.jpg", "ok", None)]


@pytest.mark.parametrize("config", [folder, manifest])
def test_a_bucket_that_does_not_exist_is_a_storage_error(s3_server: S3Server, config: Any) -> None:
    with pytest.raises(NotFoundError, match="'sources-nowhere' does not exist"):
        list_source(config("s3://sources-nowhere/list.csv"))


@pytest.fixture
def refusing_s3(s3_server: S3Server) -> Iterator[S3Server]:
    """Let the server check credentials, none of which it knows, for the length of a test."""
    httpx.post(f"{s3_server.endpoint}/moto-api/reset-auth", content=b"0").raise_for_status()
    yield s3_server
    httpx.post(f"{s3_server.endpoint}/moto-api/reset-auth", content=b"inf").raise_for_status()


def test_a_refused_key_is_an_access_error(refusing_s3: S3Server) -> None:
    with pytest.raises(AccessError, match="refused the credentials; check AWS_ACCESS_KEY_ID"):
        list_source(folder("s3://sources-refused"))


def test_two_encodings_of_one_accent_are_told_so_that_the_advice_can_be_followed(
    tmp_path: Path,
) -> None:
    write(tmp_path, class_files({"caf\u00e9": 2, "cafe\u0301": 2, "bad": 2}))
    config = DataConfig(uri=str(tmp_path))
    with pytest.raises(DataError, match=r"which look like one") as refused:
        number_labels(list_source(config).table, config)
    (advice,) = re.findall(r"set data.rename: (\{.*?\})", str(refused.value))
    config = load_section(DataConfig, None, "data", [f"uri={tmp_path}", f"rename={advice}"])
    assert number_labels(list_source(config).table, config)[1] == ("bad", "caf\u00e9") or (
        number_labels(list_source(config).table, config)[1] == ("bad", "cafe\u0301")
    )


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("label", [["ok"], ["bad"]], "column 'label' is of type list"),
        ("label", [b"ok", b"bad"], "column 'label' is of type binary; expected text or numbers"),
        ("path", [1, 2], "column 'path' is of type int64; expected text"),
    ],
)
def test_a_parquet_manifest_with_a_column_of_the_wrong_type_is_refused(
    tmp_path: Path, column: str, values: list[Any], told: str
) -> None:
    columns: dict[str, Any] = {"path": ["a.jpg", "b.jpg"], "label": ["ok", "bad"]}
    pyarrow.parquet.write_table(pa.table({**columns, column: values}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=told):
        list_source(DataConfig(source="manifest", uri=str(tmp_path / "list.parquet")))


def test_a_manifest_says_more_of_an_image_if_it_has_the_columns(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "path,label,group,weight,box\na.jpg,ok,7,0.5,1 2 30 40\nb.jpg,bad,,,\n"
    )
    config = DataConfig(source="manifest", uri=str(tmp_path / "list.csv"))
    rows = list_source(config).table.select(["group", "weight", "box"]).to_pylist()
    assert rows == [
        {"group": "7", "weight": 0.5, "box": [1, 2, 30, 40]},
        {"group": None, "weight": None, "box": None},
    ]


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("weight", "says 'x' in row 1; expected a number that is not negative"),
        ("box", "says 'x' in row 1; expected four numbers in pixels: left, top, right, bottom"),
    ],
)
def test_a_cell_that_makes_no_sense_is_refused_with_its_row(
    tmp_path: Path, cell: str, told: str
) -> None:
    (tmp_path / "list.csv").write_text(f"path,label,{cell}\na.jpg,ok,x\n")
    with pytest.raises(DataError, match=told):
        list_source(DataConfig(source="manifest", uri=str(tmp_path / "list.csv")))


@pytest.mark.parametrize("box", ["1 2 3", "5 5 5 9", "-1 0 5 5", "0 0 1e999 5", "a b c d"])
def test_a_box_without_an_area_is_none(box: str) -> None:
    with pytest.raises(ValueError, match="four numbers"):
        parse_box(box)


def test_dropped_labels_are_left_out_and_merged_ones_become_one(tmp_path: Path) -> None:
    write(tmp_path, class_files({"OK": 2, "okay": 2, "bad": 2, "not sure": 3}))
    config = DataConfig(uri=str(tmp_path), drop=["not sure"], merge={"good": ["OK", "okay"]})
    table = drop_labels(list_source(config).table, config)
    numbers, classes = number_labels(table, config)
    assert classes == ("bad", "good")
    assert np.bincount(numbers).tolist() == [2, 4]


def test_a_rule_for_a_label_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, class_files({"okay": 2, "bad": 2}))
    config = DataConfig(uri=str(tmp_path), drop=["okey"])
    with pytest.raises(DataError, match=r"data.drop names the label 'okey'.*did you mean 'okay'"):
        drop_labels(list_source(config).table, config)
    config = DataConfig(uri=str(tmp_path), merge={"good": ["okey"]})
    with pytest.raises(DataError, match=r"data.merge names .*did you mean 'okay'"):
        number_labels(list_source(config).table, config)


def test_a_stranger_is_refused_with_the_nearest_class(tmp_path: Path) -> None:
    write(tmp_path, class_files({"okay": 2, "bad": 2, "badd": 1}))
    config = DataConfig(uri=str(tmp_path), classes=["okay", "bad"])
    with pytest.raises(DataError, match="'badd' is near 'bad'"):
        number_labels(list_source(config).table, config)


def test_a_label_has_one_rule_only() -> None:
    with pytest.raises(ValueError, match="'OK' has more than one rule"):
        DataConfig(uri="x", drop=["OK"], rename={"OK": "good"})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("unknown", "is what a served model answers where it does not know"),
        ("Unknown ", "begins or ends with a space"),
        ("new\nline", "has characters that do not print"),
        ("nbsp\u00a0x", "has characters that do not print"),
        ("x" * 201, "has 201 characters, more than 200"),
    ],
)
def test_a_name_that_no_model_can_serve_is_refused_before_it_is_trained(
    name: str, why: str
) -> None:
    refuse_unservable("s3://set", ["good", "defective", "not known"])
    with pytest.raises(DataError) as refused:
        refuse_unservable("s3://set", ["good", name])
    assert why in str(refused.value) or "is what a served model" in str(refused.value)
    (advice,) = re.findall(r"data.rename: (\{.*?\}), or leave", str(refused.value))
    assert yaml.safe_load(advice) == {name: "other"}


def test_images_beside_the_class_folders_are_told_where_there_are_no_others(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": IMAGE, "b.jpg": IMAGE})
    told = refusal(folder(tmp_path))
    assert "holds no image that has a label" in told
    assert "2 images lie outside of a class folder" in told


def test_what_is_there_but_is_something_else_is_called_so(tmp_path: Path) -> None:
    write(tmp_path, {"ok/a.jpg": IMAGE})
    with pytest.raises(NotFoundError, match=r"a.jpg is a file; expected a folder"):
        list_source(folder(tmp_path / "ok" / "a.jpg"))
    assert "is a folder; name the file in it, or set data.source: folder" in refusal(
        manifest(tmp_path / "ok")
    )


def test_rows_that_name_a_file_again_are_told(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "path,label\na.jpg,ok\nb.jpg,bad\n./a.jpg,ok\na.jpg,ok\n")
    (warning,) = list_source(manifest(path)).warnings
    assert warning.startswith(
        f"2 rows name a file that another row names, for example {tmp_path}/a.jpg"
    )
    path = csv_file(tmp_path, "path,label,box\na.jpg,ok,0 0 1 1\na.jpg,ok,0 0 2 2\n")
    assert not list_source(manifest(path)).warnings, "two boxes of a photo are two images"


def test_not_a_number_is_a_blank(tmp_path: Path) -> None:
    table = pa.table({"path": ["a.jpg", "b.jpg"], "label": [1.0, math.nan]})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    assert "column 'label' is blank in 1 of 2 rows" in refusal(manifest(tmp_path / "list.parquet"))
    groups = pa.table({"path": ["a.jpg", "b.jpg"], "label": ["x", "y"], "group": [2.0, math.nan]})
    pyarrow.parquet.write_table(groups, tmp_path / "list.parquet")
    table = list_source(manifest(tmp_path / "list.parquet")).table
    assert table["group"].to_pylist() == ["2.0", None]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_csv_in_another_encoding_is_refused_with_what_to_do(
    tmp_path: Path, encoding: str
) -> None:
    path = csv_file(tmp_path, "path,label\na.jpg,gr\u00f6\u00dfe\n", encoding)
    assert refusal(manifest(path)).endswith("; save it as UTF-8")


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a.jpg", "label": "x"}\n', encoding="utf-8-sig")
    assert [row[1] for row in rows(list_source(manifest(path)))] == ["x"]
