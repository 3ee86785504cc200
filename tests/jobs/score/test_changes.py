"""Models and labels that change in the middle of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from models.label_edits import Rename
from models.label_log import open_log
from models.label_revision import Author
from serve_app.config import ServeOptions
from serve_app.model import ServedModel, open_served
from tests.bundles import tiny_bundle
from tests.jobs.score.conftest import CLASSES, NUM_IMAGES, Model, Shell
from tests.jobs.score.running import wait_for
from tests.jobs.score.serving import Border, Site, served

pytestmark = pytest.mark.slow  # labels change in real time


def test_several_versions_in_one_run_are_told(
    model: Model, shell: Shell, images: Path, tmp_path: Path
) -> None:
    model.border.versions = [1, 2, 2]
    output = tmp_path / "s.parquet"
    ended = shell.run(images, "--url", model.url, "--output", output, "--batch", 8)
    assert ended.line["versions"] == {"1": NUM_IMAGES - 16, "2": 16}
    assert "more than one version has answered" in ended.shown
    assert (pd.read_parquet(output)["version"] == 2).sum() == 16


@contextmanager
def changing_labels(folder: Path) -> Iterator[tuple[Model, Callable[[str, str], int]]]:
    """A model whose labels change, and what renames one of them."""
    uri = tiny_bundle(folder / "m", name="caps", kind="dynamic", classes=CLASSES, size=32)
    options = ServeOptions(
        bundle=uri, threads=1, label_store=str(folder / "l"), label_poll_seconds=0.05
    )
    opened: ServedModel = open_served(options)
    log = open_log(str(folder / "l"), "caps", opened.manifest.classes)

    def rename(label: str, name: str) -> int:
        edit = Rename(label=label, name=name)
        return log.write((edit,), Author("ann", "a test")).number

    border = Border()
    try:
        with served(Site({"tiny": opened}, border)) as server:
            yield Model(server, border), rename
    finally:
        opened.close()


def test_labels_that_change_in_mid_run_have_columns_under_both_names(
    shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.parquet"
    with changing_labels(tmp_path) as (model, rename):
        model.border.delay_seconds = 0.05

        def change() -> None:
            wait_for(lambda: model.border.num_images >= 24)
            rename("good", "ok")

        thread = threading.Thread(target=change)
        thread.start()
        ended = shell.run(
            *(images, "--url", model.url, "--output", output, "--scores", "all"),
            *("--batch", 4, "--concurrency", 2),
        )
        thread.join()
    table = pd.read_parquet(output)
    assert set(ended.line["label_revisions"]) == {"0", "1"}
    assert "more than one label revision has answered" in ended.shown
    before, after = table[table["label_revision"] == 0], table[table["label_revision"] == 1]
    assert before["p_good"].notna().all()
    assert before["p_ok"].isna().all()
    assert after["p_ok"].notna().all()
    assert after["p_good"].isna().all()


def test_a_label_revision_that_is_asked_for_is_waited_for(
    shell: Shell, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "s.csv"
    with changing_labels(tmp_path) as (model, rename):
        arguments = (images, "--url", model.url, "--output", output, "--min-revision", 1)
        shown = shell.refused(*arguments, "--patience", 0.5)
        assert "label revision 1 is not in effect here, 0 is" in shown
        threading.Timer(1.0, rename, ("good", "ok")).start()
        ended = shell.run(*arguments, "--resume")
    assert ended.line["label_revisions"] == {"1": NUM_IMAGES}
