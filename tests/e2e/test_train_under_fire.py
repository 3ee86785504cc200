"""A training whose workers, nodes or driver are killed ends like one that was left alone: the same
images in every step, the same figures.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import ray
import yaml

from cluster.session import Session
from jobs.train.borders import Notice, StoppedError
from jobs.train.checkpoints import Checkpoints
from jobs.train.config import TrainConfig
from jobs.train.history import EpochRecord
from jobs.train.samples import FOLDER, read_samples
from jobs.train.trainer import train
from models.storage import open_store
from tests.faults.training.compare import compare, trace
from tests.faults.training.interruptions import at_step
from tests.faults.training.runs import (
    ROOT,
    Photos,
    Seen,
    begun_by,
    files_of,
    lines,
    reached,
    run_module,
    worker_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def photos(ray_session: Session, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """160 photos of two classes."""
    return Photos.write(str(tmp_path_factory.mktemp("fire")))


@pytest.fixture(scope="module")
def alone(photos: Photos) -> list[EpochRecord]:
    """The history of a run of two workers that nobody disturbs."""
    seen = Seen()
    history = train(photos.config("alone"), photos.index, "alone", seen).history
    # what the workers do is shown where the run was started
    assert [record.epoch for record in seen.records] == [0, 1, 2]
    assert seen.statuses[0].total == 3 * 128
    assert seen.statuses[-1].done == 3 * 128
    assert seen.statuses[-1].loss > 0
    return history


def assert_like(
    photos: Photos, name: str, history: list[EpochRecord], alone: list[EpochRecord]
) -> None:
    """Compare images, weights, figures and the lines of metrics.jsonl with those of the run left
    alone.
    """
    mine = trace(photos.config(name), name, history)
    found = compare(mine, trace(photos.config("alone"), "alone", alone))
    assert found.is_noise(1e-6), found


def test_two_workers_see_every_image_of_an_epoch_once(
    photos: Photos, alone: list[EpochRecord]
) -> None:
    steps = read_samples(photos.run("alone"))
    assert len(steps) == 3 * 32
    for epoch in range(3):
        ids = [i for (at, _), step in steps.items() if at == epoch for i in step]
        assert sorted(ids) == list(range(128))


def test_a_worker_that_is_killed_changes_nothing(photos: Photos, alone: list[EpochRecord]) -> None:
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    rank, step = draw.randint(0, 1), draw.randint(10, 80)
    print(f"seed {seed}: worker {rank} at step {step}")
    folder = photos.run("worker")
    kill = lambda: os.kill(worker_of(folder, rank), signal.SIGKILL)  # noqa: E731
    with at_step(folder, step, kill):
        history = train(photos.config("worker"), photos.index, "worker", Seen()).history
    assert len(list((folder / FOLDER).glob("*.jsonl"))) == 4, "two groups of two workers"
    assert_like(photos, "worker", history, alone)


@pytest.mark.faults  # a minute
def test_a_run_that_is_asked_to_stop_leaves_its_step_and_goes_on(
    photos: Photos, alone: list[EpochRecord]
) -> None:
    folder = photos.run("stopped")

    class Stopper(Seen):
        def notice(self) -> Notice | None:
            return Notice("SIGTERM", ends=True) if lines(folder) > 20 else None

    config = photos.config("stopped", checkpoint={"every_seconds": None})
    with pytest.raises(StoppedError, match=r"stopped in epoch \d, step \d+ of 16 because of SIGT"):
        train(config, photos.index, "stopped", Stopper())
    begun = lines(folder)
    seen = Seen()
    history = train(config, photos.index, "stopped", seen).history
    assert lines(folder) - begun in (96 - begun, 96 - begun + 1), "no step is lost"
    assert seen.statuses[0].done > 0
    assert_like(photos, "stopped", history, alone)


def written(photos: Photos, config: TrainConfig) -> list[str]:
    """Return the paths of settings and index, for a process that trains with them."""
    settings, index = Path(photos.uri) / f"{config.run}.yaml", Path(photos.uri) / "index.pickle"
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    index.write_bytes(pickle.dumps(photos.index))
    return [str(settings), str(index)]


def epochs_of(folder: Path) -> list[int]:
    """Return the epochs that the last checkpoint of a run tells of."""
    last = Checkpoints(open_store(folder / "checkpoints")).load("last")
    assert last is not None
    return [record["epoch"] for record in last["history"]]


@pytest.mark.faults  # a minute and a half each
@pytest.mark.parametrize("drained", [(), ("drain",)], ids=["killed", "drained"])
def test_a_node_that_is_lost_leaves_fewer_workers_that_go_on_with_the_next_image(
    photos: Photos, alone: list[EpochRecord], drained: tuple[str, ...]
) -> None:
    """Of two nodes, that with two CPUs is lost: one worker is left, and no CPU beside it. When Ray
    is told before, the only checkpoint in mid-epoch is the one that is made for that.
    """
    run = "".join(("node", *drained))
    folder = photos.run(run)
    checkpoint: dict[str, object] = {"every_seconds": None} if drained else {"every_steps": 2}
    workers = {"num_workers": [1, 2]}
    # Long enough that it still trains when Ray knows of the loss.
    epochs = 16 if drained else 3
    config = photos.config(run, workers=workers, checkpoint=checkpoint, epochs=epochs)
    arguments = [*written(photos, config), run, "10", *drained]
    # Ray Train tries for so long to start as many workers as before the loss was known.
    run_module("tests.e2e.lost_node", *arguments, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="10")
    files = sorted(path.name.partition("-")[0] for path in (folder / FOLDER).glob("*.jsonl"))
    assert files == ["0", "0", "1"], "two workers, then one"
    # Positions are those of the epoch's order, so it makes no difference who took the images.
    samples = {at: ids for at, ids in read_samples(folder).items() if at[0] < 3}
    assert samples == read_samples(photos.run("alone"))
    assert epochs_of(folder) == list(range(epochs))


@pytest.mark.faults  # a minute
def test_a_node_that_comes_takes_another_worker_from_the_next_image_on(photos: Photos) -> None:
    """One worker of two CPUs has room; the node that comes has two more. No epoch that was finished
    by then, or in which the group grew, passes an image over or has one twice.
    """
    workers = {"num_workers": [1, 2], "cpus_per_worker": 2, "resize_seconds": 5}
    config = photos.config("gained", workers=workers, epochs=1000)
    run_module("tests.e2e.gained_node", *written(photos, config), "gained", "10")
    folder = photos.run("gained")
    files = sorted(path.name.partition("-")[0] for path in (folder / FOLDER).glob("*.jsonl"))
    assert files == ["0", "0", "1"], "one worker, then two"
    together = min(at[0] for path in files_of(folder) for at in begun_by(path) if "1-" in path.name)
    taken: dict[int, list[int]] = {}
    for (epoch, _), ids in read_samples(folder).items():
        taken.setdefault(epoch, []).extend(ids)
    for epoch in range(together + 1):
        assert sorted(taken[epoch]) == list(range(128)), epoch


@pytest.mark.faults  # a minute
def test_a_driver_that_is_killed_or_ended_goes_on_when_the_run_is_submitted_again(
    photos: Photos, alone: list[EpochRecord]
) -> None:
    """First SIGKILL, then SIGTERM, then left alone."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    config, folder = photos.config("driver"), photos.run("driver")
    file = Path(photos.uri) / "driver.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "jobs.train", str(file)]
    for number, steps in ((signal.SIGKILL, draw.randint(8, 30)), (signal.SIGTERM, 12)):
        at = reached(files_of(folder)) + steps
        with (
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
            ) as process,
            at_step(folder, at, partial(process.send_signal, number)),
        ):
            said = process.communicate()[1]
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, said[-3000:]
            time.sleep(5)  # until Ray has ended its workers
        else:
            assert process.returncode == 1, said[-3000:]
            assert "because of SIGTERM" in said
            assert "to go on, run again with run=driver" in said
    history = train(config, photos.index, "driver", Seen()).history
    assert_like(photos, "driver", history, alone)


@pytest.mark.faults  # a minute
def test_a_cluster_that_is_too_small_grows_until_the_workers_fit(photos: Photos) -> None:
    """One CPU on the head, where a worker takes two: Ray's autoscaler brings a node for it."""
    workers = {"num_workers": 1, "cpus_per_worker": 2, "wait_seconds": 120}
    config = photos.config("grown", workers=workers)
    said = run_module("tests.e2e.growing_cluster", *written(photos, config))
    assert json.loads(said.splitlines()[-1]) == [1, 2]
    assert epochs_of(photos.run("grown")) == [0, 1, 2]
