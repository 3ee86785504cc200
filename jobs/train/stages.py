"""The stages that runs of every kind have in common: what is checked before, the run's name, the
training itself with its bar, the images that engines are proved on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice, zip_longest

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from rich.console import Console

from jobs.console import bar
from jobs.data.index import Index
from jobs.data.places import Place, places_of, read_place
from jobs.data.quarantine import Broken, keep_quarantine
from jobs.data.tables import print_broken
from jobs.export.exporter import Draft
from jobs.lease import Lease, holding
from jobs.train.bar import BarWatcher
from jobs.train.borders import StoppedError
from jobs.train.config import TrainConfig
from jobs.train.history import best_epoch, describe
from jobs.train.idle import idle_settings, idle_with_images
from jobs.train.inputs import check_sizes
from jobs.train.stop import StopRequest
from jobs.train.threads import use_all_cores
from jobs.train.trainer import Trained, train
from jobs.train.worker import check_tracking, open_images, prepare_network
from jobs.train.wrapping import check_compiler
from models.errors import DataError, ImageError, NotFoundError
from models.preprocess import Box, prepare
from models.storage import open_store


@contextmanager
def opened_run(
    config: TrainConfig, console: Console, *, is_trial: bool = False
) -> Iterator[tuple[str, Lease]]:
    """Give a run its name and hold that, after everything that can be checked before images are
    read: hours before it would be needed.

    Two runs of one name would write each other's checkpoints: the second is refused while the first
    is alive.
    """
    run_id = config.run or new_run_id()
    use_all_cores()
    print_notes(idle_settings(config, is_trial=is_trial), console)
    check_sizes(prepare_network(config, 2), config)
    check_tracking(config)
    if config.workers.most == 0 and config.network.freeze == "none":
        check_compiler(config.compile)
    for uri in dict.fromkeys((config.store, config.runs)):
        open_store(uri).check_writable()
    with holding(config.runs, run_id, "run") as lease:
        yield run_id, lease


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Say what does nothing, a line each."""
    for note in notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)


def new_run_id() -> str:
    """Return a name for a run: sortable by time, and unlike any other."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def report_broken(
    config: TrainConfig, broken: Sequence[Broken], run_id: str, name: str, console: Console
) -> None:
    """Keep the list of images that were left out with the run, and show how it begins."""
    if broken:
        print_broken(broken, keep_quarantine(broken, config.runs, run_id, name), console)


def evaluation_split(config: TrainConfig, index: Index) -> str:
    """Return the split to judge the model by: test, or validation where there is no test."""
    split = next((s for s in ("test", "validation") if index.num_images(s)), None)
    if split is None:
        raise DataError(
            f"{config.data.uri} has neither test nor validation images to judge the model by; set "
            "data.split, or add images"
        )
    return split


def train_in_sight(
    config: TrainConfig, index: Index, run_id: str, lease: Lease, console: Console
) -> Trained:
    frozen = config.network.freeze == "backbone"
    images = index.num_images("train")
    total = images + index.num_images("validation") if frozen else images * config.epochs
    print_notes(idle_with_images(config, index), console)
    console.print(
        f"run {run_id}: {config.network.backbone}, {config.epochs} epochs", highlight=False
    )
    if not frozen and config.images_per_class is None:
        _report_tail(config, index, console)
    stop = StopRequest()
    with bar(console, "features" if frozen else "training", total) as advance, stop.listening():
        watcher = BarWatcher(console, advance, lease, stop, quiet_epochs=frozen)
        try:
            trained = train(config, index, run_id, watcher)
            if stop.notice() is not None:  # when no step was left to see it
                raise StoppedError("stopped behind the last step because of SIGTERM")
        except StoppedError as error:
            raise StoppedError(f"{error}; to go on, run again with run={run_id}") from error
        except KeyboardInterrupt:
            console.print(f"to go on, run again with run={run_id}", highlight=False)
            raise
    kept = trained.history[best_epoch(trained.history, config.monitor)]
    console.print(f"kept {describe(kept)}", highlight=False)
    return trained


def _report_tail(config: TrainConfig, index: Index, console: Console) -> None:
    """Say how many images an epoch goes without, or sees twice, so that every batch is whole."""
    world = max(1, config.workers.most)
    group, images = config.batch_size * world, index.num_images("train")
    left = open_images(config, index).num_left_out(
        "train", batch_size=config.batch_size, world=world
    )
    if images < group:
        console.print(f"an epoch repeats images: one step takes {group:,}, there are {images:,}")
    elif left:
        console.print(
            f"every epoch leaves out {left:,} of {images:,} images, other ones each time: a step "
            f"takes {group:,}",
            highlight=False,
        )


def reference_images(config: TrainConfig, index: Index) -> npt.NDArray[np.uint8]:
    """Return prepared images (N, H, W, 3), the classes in turn, from the validation split where
    there is one.
    """
    split = "validation" if index.num_images("validation") else "train"
    rows = index.table.filter(pc.equal(index.table["split"], split))
    by_class: dict[int, list[tuple[Place, Box | None]]] = {}
    found = zip(places_of(rows), rows["box"].to_pylist(), rows["label"].to_pylist(), strict=True)
    for place, box, label in found:
        by_class.setdefault(label, []).append((place, box))
    in_turn = (one for row in zip_longest(*by_class.values()) for one in row if one is not None)
    return np.stack(list(islice(_readable(in_turn, config), config.export.num_reference_images)))


def _readable(
    images: Iterator[tuple[Place, Box | None]], config: TrainConfig
) -> Iterator[npt.NDArray[np.uint8]]:
    """Prepare images, passing over those that broke since the index was made.

    Raises `DataError` if none is left.
    """
    found = 0
    for place, box in images:
        try:
            image = prepare(read_place(place), config.preprocess, config.data.limits, box)
        except (ImageError, NotFoundError):
            continue
        found += 1
        yield image
    if not found:
        raise DataError(f"no image of {config.data.uri} can be read any more")


def print_parities(draft: Draft, console: Console) -> None:
    for parity in draft.parities:
        if parity.proof is None:
            console.print(
                f"[yellow]note:[/] {parity.engine} {parity.precision} is not accurate enough: "
                f"{parity.refusal}",
                highlight=False,
            )
        else:
            console.print(
                f"proved {parity.engine} {parity.precision}: largest probability difference "
                f"{parity.proof.largest_probability_difference:.5f}, lowest cosine "
                f"{parity.proof.lowest_cosine:.5f}",
                highlight=False,
            )
