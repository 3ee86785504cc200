"""`python -m jobs.evaluate SOURCE --bundle B`: from images of any source to a report, through the
engine that serves the bundle.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from cluster.session import Session
from jobs.data.config import DataConfig
from jobs.evaluate.__main__ import FAILED, load_job, main, parser
from jobs.evaluate.config import EvaluateConfig
from models.bundle import open_bundle
from models.errors import ConfigError
from models.label_edits import Merge, Rename
from models.label_log import open_log
from models.label_map import Reading
from models.label_revision import Author
from models.predictor import open_predictor
from tests.bundles import tiny_bundle
from tests.jobs.data.images import BROKEN, jpeg, write
from tests.jobs.data.packs import pack

CLASSES = ("good", "dented", "torn")
SIZE = 32
ON_RAY = [pytest.mark.ray, pytest.mark.slow]


def test_settings_go_to_the_section_that_has_them(tmp_path: Path) -> None:
    job = load_job("s3://factory/caps", None, ["source=manifest", "resamples=500", "cells=5"])
    assert (job.data.uri, job.data.source) == ("s3://factory/caps", "manifest")
    assert (job.evaluate.resamples, job.evaluate.cells) == (500, 5)
    with pytest.raises(ConfigError, match="resamples"):
        load_job("set", None, ["resample=500"])


PAGE = (Path(__file__).parents[3] / "docs" / "evaluate.md").read_text()


@pytest.mark.parametrize("setting", EvaluateConfig.model_fields)
def test_the_page_shows_every_setting_with_its_default(setting: str) -> None:
    (snippet,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert yaml.safe_load(snippet)["evaluate"][setting] == getattr(EvaluateConfig(), setting)


def test_every_command_of_the_page_is_understood() -> None:
    text = PAGE.replace("\\\n", " ")
    commands = re.findall(r"^\$ \.venv/bin/python -m jobs\.evaluate (.*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        given = parser().parse_intermixed_args(shlex.split(command))
        assert given.bundle.endswith(("/3", "/4"))
        load_job(given.source, given.config, given.overrides)
    for override in re.findall(r"`'(.*?)'`", PAGE):
        load_job("set", None, [override])


def test_settings_have_their_bounds() -> None:
    with pytest.raises(ValueError, match="resamples"):
        EvaluateConfig(resamples=3)


def test_no_setting_is_in_both_sections() -> None:
    assert not set(DataConfig.model_fields) & set(EvaluateConfig.model_fields)


def test_an_embedding_model_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = tiny_bundle(tmp_path, kind="embedding", size=SIZE)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nowhere"), "--bundle", uri])
    assert ended.value.code == 1
    assert "has no classes to judge" in " ".join(capsys.readouterr().err.split())


@dataclass(frozen=True)
class Set:
    """A folder with splits of its own, and what the first model says of its test images."""

    folder: Path
    bundle: str
    other: str
    truth: dict[str, str]  # by file name
    answers: dict[str, str]


def probabilities_of(bundle: str, files: dict[str, bytes], cache: Path) -> npt.NDArray[np.float32]:
    predictor = open_predictor(open_bundle(bundle, cache=cache))
    images = np.stack([predictor.prepare(data) for data in files.values()])
    probabilities = predictor.predict(images).probabilities
    predictor.close()
    assert probabilities is not None
    return probabilities


def answers_of(bundle: str, files: dict[str, bytes], cache: Path) -> dict[str, str]:
    """Return the answer for each file of a bundle whose classes are `CLASSES`."""
    best = probabilities_of(bundle, files, cache).argmax(axis=1).tolist()
    return {name: CLASSES[number] for name, number in zip(files, best, strict=True)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Set:
    """Some 60 test images, labelled as the first model answers but for every fourth of them."""
    folder = tmp_path_factory.mktemp("evaluate")
    store = folder / "models"
    bundle = tiny_bundle(store, classes=CLASSES, size=SIZE)
    other = tiny_bundle(store, classes=CLASSES[::-1], size=SIZE, seed=8)
    files = {f"{number:03}.jpg": jpeg(number, 40 + number % 3) for number in range(60)}
    said = answers_of(bundle, files, folder / "cache")
    truth = {
        name: CLASSES[(CLASSES.index(said[name]) + 1) % 3] if number % 4 == 0 else said[name]
        for number, name in enumerate(files)
    }
    write(folder / "set", {f"test/{truth[name]}/{name}": data for name, data in files.items()})
    others = {f"train/{name}/{n}.jpg": jpeg(n) for n, name in enumerate(CLASSES * 4, start=500)}
    write(folder / "set", others)
    return Set(folder / "set", bundle, other, truth, said)


@pytest.fixture
def on_ray(ray_session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds the Ray that all tests share."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


@dataclass(frozen=True)
class Ended:
    status: int
    line: dict[str, Any]
    shown: str


@pytest.fixture
def command(on_ray: None, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process."""

    def run(*arguments: object) -> Ended:
        try:
            status = main([str(each) for each in arguments])
        except SystemExit as ended:
            status = int(str(ended.code))
        out, err = capsys.readouterr()
        last = out.splitlines()[-1] if out else ""
        line = json.loads(last) if last.startswith("{") else {}
        return Ended(status, line, " ".join(err.split()))

    return run


class TestCommand:
    pytestmark = ON_RAY

    def test_the_test_split_is_judged_through_the_engine_that_serves(
        self, made: Set, command: Any, tmp_path: Path
    ) -> None:
        ended = command(made.folder, "--bundle", made.bundle, "--out", tmp_path, "mistakes=5")
        assert ended.status == 0, ended.shown
        assert (ended.line["split"], ended.line["num_images"]) == ("test", 60)
        assert ended.line["accuracy"] == pytest.approx(45 / 60)
        table = pq.read_table(tmp_path / "predictions.parquet")
        told = {
            Path(path).name: (truth, answer)
            for path, truth, answer in zip(
                *(table[name].to_pylist() for name in ("path", "truth", "answer")), strict=True
            )
        }
        assert told == {name: (made.truth[name], made.answers[name]) for name in made.truth}
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["label_names"] == list(CLASSES)
        assert sum(map(sum, report["figures"]["confusion"])) == 60
        page = (tmp_path / "report.html").read_text()
        assert page.count("data:image/jpeg;base64,") == 10  # each with its map
        assert "0.750" in page
        assert "never trained on" in (tmp_path / "model_card.md").read_text()

    def test_two_bundles_whose_classes_stand_in_another_order_are_compared(
        self, made: Set, command: Any, tmp_path: Path
    ) -> None:
        ended = command(
            made.folder, "--bundle", made.other, "--against", made.bundle, "--out", tmp_path,
            "--fail-if-worse",
        )  # fmt: skip
        table = pq.read_table(tmp_path / "predictions.parquet")
        before = dict(
            zip(
                (Path(path).name for path in table["path"].to_pylist()),
                table["other_answer"].to_pylist(),
                strict=True,
            )
        )
        assert before == made.answers
        right = np.array(table["is_right"].to_pylist())
        was = np.array(table["other_is_right"].to_pylist())
        against = ended.line["against"]
        assert against["accuracy"] == pytest.approx(45 / 60)
        assert against["gained"] == (right & ~was).sum()
        assert against["lost"] == (~right & was).sum()
        assert against["p_value"] < 0.05  # the other filters are as good as chance
        assert ended.status == FAILED
        assert "is worse than tiny/1" in ended.shown
        page = (tmp_path / "report.html").read_text()
        assert "Images that changed" in page

    def test_broken_images_are_listed_and_a_bound_is_kept(
        self, made: Set, command: Any, tmp_path: Path
    ) -> None:
        folder = tmp_path / "new"
        files = {f"good/{n}.jpg": jpeg(n, 40) for n in range(30)}
        write(folder, {**files, **{f"good/{name}": data for name, data in BROKEN.items()}})
        options = (folder, "--bundle", made.bundle, "--out", tmp_path / "out")
        ended = command(*options, "max_broken_share=0.2", "--min-accuracy", "0.99")
        assert (ended.status, ended.line["num_broken"]) == (FAILED, 3)
        assert "is below 0.99" in ended.shown
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert {Path(one["path"]).name for one in report["broken"]} == set(BROKEN)
        assert report["split"] == "all"  # a new folder, of one class
        assert any("--split test" in note for note in report["notes"])
        assert any("'dented', 'torn'" in note for note in report["notes"])
        refused = command(*options)
        assert (refused.status, refused.line) == (1, {})
        assert "max_broken_share" in refused.shown

    def test_a_packed_set_gives_the_same_as_the_folder(
        self, made: Set, command: Any, tmp_path: Path
    ) -> None:
        pack(made.folder, tmp_path / "packed")
        ended = command(
            tmp_path / "packed", "source=packed", "--bundle", made.bundle, "--out", tmp_path / "out"
        )
        assert ended.status == 0, ended.shown
        assert ended.line["accuracy"] == pytest.approx(45 / 60)

    def test_a_label_map_is_applied_where_its_store_is_given(
        self, command: Any, tmp_path: Path
    ) -> None:
        uri = tiny_bundle(tmp_path / "models", kind="dynamic", classes=CLASSES, size=SIZE)
        files = {f"{number:03}.jpg": jpeg(number, 40) for number in range(30)}
        said = answers_of(uri, files, tmp_path / "cache")
        merged = {"good": "ok", "dented": "defective", "torn": "defective"}
        write(
            tmp_path / "set", {f"{merged[said[name]]}/{name}": data for name, data in files.items()}
        )
        options = (tmp_path / "set", "--bundle", uri, "--out", tmp_path / "out")
        refused = command(*options)
        assert refused.status == 1
        assert "does not know" in refused.shown
        assert "--labels" in refused.shown
        log = open_log(str(tmp_path / "labels"), "tiny", open_bundle(uri).manifest.classes)
        edits = (
            Rename(label="good", name="ok"),
            Merge(into="dented", labels=("torn",)),
            Rename(label="dented", name="defective"),
        )
        revision = log.write(edits, Author("ann", "a test"))
        ended = command(*options, "--labels", tmp_path / "labels")
        assert ended.status == 0, ended.shown
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["label_names"] == ["ok", "defective"]
        assert report["label_revision"] == 1
        # A merged label may win where neither of its outputs did.
        reading = Reading(revision.map, open_bundle(uri).manifest.classes, 1)
        winners = reading.winners(probabilities_of(uri, files, tmp_path / "cache"))
        answers = [reading.label_map.living[winner].name for winner in winners.tolist()]
        right = [answer == merged[said[name]] for answer, name in zip(answers, files, strict=True)]
        assert ended.line["accuracy"] == pytest.approx(np.mean(right))
        table = pq.read_table(tmp_path / "out" / "predictions.parquet")
        names = [Path(path).name for path in table["path"].to_pylist()]
        assert dict(zip(names, table["answer"].to_pylist(), strict=True)) == dict(
            zip(files, answers, strict=True)
        )
