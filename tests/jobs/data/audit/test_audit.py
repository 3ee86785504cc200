"""A whole audit of a set with planted faults: what is found of each kind, and what is found
wrongly.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from rich.console import Console

from cluster.session import Session
from jobs.data.audit.__main__ import load_job
from jobs.data.audit.report import Report
from jobs.data.audit.run import audit_set
from jobs.data.config import DataConfig
from jobs.data.index import build_index
from models.preprocess import PreprocessSpec
from models.storage import open_store
from tests.bundles import tiny_bundle
from tests.conftest import S3Server
from tests.jobs.data.audit.planted import COLOURS, Planted, encoded, picture, planted_set
from tests.jobs.data.images import BROKEN, write
from tests.jobs.data.packs import pack

pytestmark = pytest.mark.ray

# What must be found of each kind, and how much of what is found must be right.
BOUNDS = {
    "broken": (1.0, 1.0),
    "label_conflict": (1.0, 1.0),
    "copy_across_splits": (1.0, 1.0),
    "copy": (1.0, 1.0),
    "near_label_conflict": (1.0, 1.0),
    "near_copy_across_splits": (1.0, 1.0),
    "tiny": (1.0, 1.0),
    "dark": (1.0, 1.0),
    "bright": (1.0, 1.0),
    "blurry": (1.0, 0.9),
    "low_information": (1.0, 1.0),
    "odd_aspect": (1.0, 1.0),
    "odd_size": (1.0, 1.0),
    "mislabelled": (0.8, 0.9),  # of a wrong twin, both are in one fold
}


@pytest.fixture(scope="module")
def audited(
    ray_session: Session, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Planted, Report, Path]:
    """The planted set, audited once with a tiny model."""
    folder = tmp_path_factory.mktemp("audit")
    made = planted_set()
    write(folder / "set", made.files)
    bundle = tiny_bundle(folder / "models", kind="embedding")
    report = audit(folder / "set", folder / "out", bundle)
    return made, report, folder


def audit(
    source: Path | str, output: Path | str, bundle: str | None = None, *overrides: str
) -> Report:
    weights = () if bundle else ("network.weights=none",)
    job = load_job(str(source), None, [*weights, *overrides])
    return audit_set(job, bundle, open_store(output), Console(quiet=True))[0]


def found(report: Report, kind: str, root: Path) -> set[str]:
    return {str(one.path).removeprefix(f"{root}/") for one in report.findings if one.kind == kind}


def kinds(report: Report) -> set[str]:
    return {one.kind for one in report.findings}


@pytest.mark.parametrize("kind", BOUNDS)
def test_planted_faults_are_found(
    audited: tuple[Planted, Report, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made, report, folder = audited
    planted, listed = made.faults[kind], found(report, kind, folder / "set")
    hits = len(planted & listed)
    recall, precision = hits / len(planted), hits / max(1, len(listed))
    with capsys.disabled():
        print(f"\n{kind}: {len(planted)} planted, {len(listed)} found, ", end="")
        print(f"precision {precision:.2f}, recall {recall:.2f}", end=" ")
    least_recall, least_precision = BOUNDS[kind]
    assert recall >= least_recall, sorted(planted - listed)
    assert precision >= least_precision, sorted(listed - planted)


def test_a_sound_part_of_the_set_is_left_alone(audited: tuple[Planted, Report, Path]) -> None:
    made, report, folder = audited
    faulty = set().union(*made.faults.values())
    sound = set(made.files) - faulty
    blamed = {
        str(one.path).removeprefix(f"{folder / 'set'}/")
        for one in report.findings
        if one.severity != "info"
    }
    assert len(sound & blamed) <= 0.03 * len(sound), sorted(sound & blamed)


def test_the_files_say_the_same_as_the_report(audited: tuple[Planted, Report, Path]) -> None:
    _, report, folder = audited
    table = pyarrow.parquet.read_table(folder / "out" / "findings.parquet")
    assert table.column_names == [
        "path", "label", "split", "sha256", "finding", "severity", "score", "detail", "other_path",
        "leave_out",
    ]  # fmt: skip
    assert len(table) == len(report.findings)
    summary = json.loads((folder / "out" / "audit.json").read_text())
    assert summary["num_images"] == report.num_images
    assert sum(summary["findings"].values()) == len(report.findings)
    assert summary["counts"]["good"]["test"] == report.counts["good"]["test"]
    page = (folder / "out" / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "http://" not in page
    assert "https://" not in page


def test_training_leaves_out_what_the_audit_marked(audited: tuple[Planted, Report, Path]) -> None:
    made, report, folder = audited
    spec = PreprocessSpec(height=16, width=16)
    table = folder / "out" / "findings.parquet"
    index = build_index(DataConfig(uri=str(folder / "set"), leave_out=str(table)), spec)
    kept = {path.removeprefix(f"{folder / 'set'}/") for path in index.table["path"].to_pylist()}
    assert not kept & made.faults["broken"]
    assert not kept & made.faults["label_conflict"]
    assert not kept & made.faults["copy"]
    crossing = made.faults["copy_across_splits"]
    assert crossing & kept == {name for name in crossing if name.startswith("test/")}
    assert index.crossing == ()
    assert not index.quarantine
    left_out = f"{report.num_left_out:,} images were left out, as data.leave_out {table} says"
    assert left_out in index.warnings
    assert len(kept) == len(made.files) - report.num_left_out


def test_a_set_that_training_refuses_is_still_reported(
    ray_session: Session, tmp_path: Path
) -> None:
    files = {f"OK/{n}.jpg": encoded(picture(n)) for n in range(3)}
    files |= {f"ok/{n}.jpg": encoded(picture(n + 9)) for n in range(3)}
    files |= {f"bad/{name}": data for name, data in BROKEN.items()}
    write(tmp_path / "set", files)
    (tmp_path / "set" / "scratch").mkdir()
    report = audit(tmp_path / "set", tmp_path / "out")
    assert kinds(report) >= {
        "same_name", "empty_class", "no_training_image", "too_many_broken", "few_images",
        "model_skipped",
    }  # fmt: skip
    assert report.reaches("error")
    assert (tmp_path / "out" / "report.html").exists()


def test_a_model_that_cannot_be_asked_is_a_finding_and_not_the_end(
    ray_session: Session, tmp_path: Path
) -> None:
    files = {f"{name}/{n}.jpg": encoded(picture(n, name)) for name in COLOURS for n in range(6)}
    write(tmp_path / "set", files)
    bundle = tiny_bundle(tmp_path / "models", kind="embedding", seed=91)  # in no cache yet
    with (Path(bundle) / "model.onnx").open("ab") as file:
        file.write(b"x")
    report = audit(tmp_path / "set", tmp_path / "out", bundle)
    (skipped,) = (one for one in report.findings if one.kind == "model_skipped")
    assert "model.onnx" in skipped.detail
    assert (tmp_path / "out" / "report.html").exists()


def test_one_class_and_a_set_that_cannot_be_listed_are_findings(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path / "one", {f"ok/{n}.jpg": encoded(picture(n)) for n in range(3)})
    assert "one_class" in kinds(audit(tmp_path / "one", tmp_path / "out"))
    nothing = audit(tmp_path / "one", tmp_path / "out", None, "drop=[ok]")
    assert kinds(nothing) == {"one_class"}
    wrong = audit(tmp_path / "one", tmp_path / "out", None, "merge={good: [okk]}", "drop=[bad]")
    told = [one.detail for one in wrong.findings if one.kind == "unknown_rule"]
    assert len(told) == 2, "and nothing of it ends the audit"
    assert "data.merge names the label 'okk'" in told[1]
    listed = audit(tmp_path / "one", tmp_path / "out", None, "classes=[good, bad]")
    assert "unknown_label" in kinds(listed)
    write(tmp_path / "odd", {"test/ok/1.jpg": encoded(picture(1))})
    report = audit(tmp_path / "odd", tmp_path / "out")
    assert kinds(report) == {"unlisted"}
    assert "none for training" in report.findings[0].detail


def test_a_fixed_camera_is_told_of_instead_of_every_image(
    ray_session: Session, tmp_path: Path
) -> None:
    """One scene, photographed 80 times: dark, and the same in every pixel but for its noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(5)
    scene = np.asarray(picture(3)).astype(np.float32) * 0.2
    for number in range(80):
        noisy = (scene + random.normal(0, 4, scene.shape)).clip(0, 255).astype(np.uint8)
        data = encoded(Image.fromarray(noisy), 95)
        write(tmp_path / "set", {f"{'ab'[number % 2]}/{number}.jpg": data})
    report = audit(tmp_path / "set", tmp_path / "out")
    assert "relative_check" in kinds(report)
    flagged = [one for one in report.findings if one.kind in ("dark", "near_label_conflict")]
    assert len(flagged) < 8, report.findings


def test_a_manifest_in_a_bucket_is_audited_into_the_bucket(
    ray_session: Session, s3_server: S3Server
) -> None:
    uri = s3_server.make_bucket("audit")
    files = {
        f"images/{n}.jpg": encoded(picture(n, "good" if n % 2 else "defective")) for n in range(24)
    }
    lines = ["path,verdict,fold,part"]
    lines += [
        f"{name},{'good' if n % 2 else 'not sure'},{'test' if n < 6 else 'train'},part {n // 5}"
        for n, name in enumerate(files)
    ]
    files["list.csv"] = "\n".join(lines).encode()
    write(open_store(uri), files)
    report = audit(
        f"{uri}/list.csv", f"{uri}/audit", None,
        "source=manifest", "label_column=verdict", "split_column=fold", "group_column=part",
        "few_images=5", "enough_images=5",
    )  # fmt: skip
    assert {"unclear_label", "group_across_splits"} <= kinds(report)
    assert "few_images" not in kinds(report)
    torn = [one for one in report.findings if one.kind == "group_across_splits"]
    assert [one.detail for one in torn] == ["group 'part 1' is in train, test"]
    names = {entry.key for entry in open_store(f"{uri}/audit").list()}
    assert names == {"report.html", "findings.parquet", "audit.json"}


def test_tar_files_are_audited_where_they_lie(ray_session: Session, tmp_path: Path) -> None:
    files = {f"{n:03}.jpg": encoded(picture(n)) for n in range(12)} | {
        "003.jpg": BROKEN["empty.jpg"]
    }
    files |= {"012.jpg": files["001.jpg"]}
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for number, (name, data) in enumerate(sorted(files.items())):
            label = b"good" if number % 2 else b"bad"
            for member, content in ((name, data), (name.replace("jpg", "cls"), label)):
                about = tarfile.TarInfo(member)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    report = audit(tmp_path / "set.tar", tmp_path / "out", None, "source=webdataset")
    assert report.num_images == 13
    assert {"broken", "label_conflict"} <= kinds(report)
    assert "data:image/jpeg" in (tmp_path / "out" / "report.html").read_text()


def test_skipped_findings_are_not_reported(ray_session: Session, tmp_path: Path) -> None:
    write(tmp_path / "set", {f"{c}/{n}.jpg": encoded(picture(n)) for c in "ab" for n in range(3)})
    settings: Any = ("skip=[few_images, label_conflict]",)
    report = audit(tmp_path / "set", tmp_path / "out", None, *settings)
    assert not kinds(report) & {"few_images", "label_conflict"}


def test_no_model_is_asked_for_findings_that_are_all_skipped(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path / "set", {f"{n % 2}/{n}.jpg": encoded(picture(n)) for n in range(24)})

    def kinds_without(*skipped: str) -> set[str]:  # and without weights that could be asked
        return kinds(audit(tmp_path / "set", tmp_path / "o", None, f"skip=[{', '.join(skipped)}]"))

    assert "model_skipped" in kinds_without("mislabelled", "ambiguous")
    assert "model_skipped" not in kinds_without("mislabelled", "ambiguous", "overlapping_classes")


def test_images_that_the_listing_could_not_take_count_among_the_broken(
    ray_session: Session, tmp_path: Path
) -> None:
    write(tmp_path / "set", {f"{n % 2}/{n}.jpg": encoded(picture(n)) for n in range(12)})
    for number in range(8):
        (tmp_path / "set" / "0" / f"gone-{number}.jpg").symlink_to(tmp_path / "nowhere.jpg")
    report = audit(tmp_path / "set", tmp_path / "out")
    (told,) = [one.detail for one in report.findings if one.kind == "too_many_broken"]
    assert told.startswith("8 of 20 images, 40.0%")


def test_a_packed_set_is_audited_in_the_splits_that_it_has(
    ray_session: Session, tmp_path: Path
) -> None:
    folders = ("train", "validation")
    write(
        tmp_path / "set",
        {f"{folders[n % 4 == 0]}/{n // 4 % 2}/{n}.jpg": encoded(picture(n)) for n in range(80)},
    )
    pack(
        tmp_path / "set", tmp_path / "packed", split={"train": 0.8, "validation": 0.2, "test": 0.0}
    )
    report = audit(tmp_path / "packed", tmp_path / "out", None, "source=packed")
    index = build_index(DataConfig(source="packed", uri=str(tmp_path / "packed")), PreprocessSpec())
    assert index.num_images("test") == 0
    for split in ("train", "validation", "test"):
        counted = sum(row[split] for row in report.counts.values())
        assert counted == index.num_images(split), split


def test_leaving_out_what_was_found_keeps_a_file_that_two_rows_name(
    ray_session: Session, tmp_path: Path
) -> None:
    """Left out as a copy in train, it was left out of test, too: by its path."""
    write(tmp_path, {f"{n}.png": encoded(picture(n)) for n in range(40)})
    splits = ("train", "validation", "test")
    rows = [f"{n}.png,{'ok' if n % 2 else 'bad'},{splits[n % 5 % 3]}" for n in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows, "2.png,bad,train"]))
    audit(tmp_path / "list.csv", tmp_path / "out", None, "source=manifest")
    config = DataConfig(
        source="manifest",
        uri=str(tmp_path / "list.csv"),
        leave_out=str(tmp_path / "out" / "findings.parquet"),
    )
    index = build_index(config, PreprocessSpec())
    names = {Path(path).name for path in index.table["path"].to_pylist()}
    assert "2.png" in names
