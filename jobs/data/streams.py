"""Batches of decoded images for one split, streamed: read and decoded ahead by Ray tasks.

The row numbers are shuffled, not the images, so the shuffle is perfect and costs nothing; each
worker of a training run makes its own stream over its own share. Images stay uint8: a quarter of
the bytes of float32 on every way they travel.

Shape legend: B images per batch, H x W the model's input size, channels last, RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Required, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs.data import places
from jobs.data.assembling import assemble
from jobs.data.chunks import Columns, Pace, count_cpus, run_chunks
from jobs.data.class_batches import grouped
from jobs.data.config import DataConfig
from jobs.data.index import Index
from jobs.data.kept import Images, KeptImages
from jobs.data.memory import give_back_memory
from jobs.data.order import (
    Ids,
    balanced,
    chunk_bounds,
    shard,
    shard_batches,
    shuffled,
    shuffled_runs,
    storage_order,
    weighted,
    whole_batches,
)
from jobs.data.quarantine import Broken, check_share
from jobs.data.slots import room_for
from jobs.data.split import SPLITS
from models.decoders import DEFAULT_LIMITS, ImageLimits
from models.errors import DataError, ImageError
from models.preprocess import PreprocessSpec, prepare
from models.storage import is_remote

# Of a chunk; in memory are as many as CPUs and a few more. With half of it, what Ray does for each
# took 0.02 ms more for an image, 2 % of decoding a photo.
MAX_CHUNK_BYTES = 64 << 20
COLUMNS = [*places.SCHEMA.names, "label", "weight", "box"]


@dataclass(frozen=True)
class Batch:
    """Decoded images with their labels. The arrays are the batch's own and may be written to."""

    images: npt.NDArray[np.uint8]  # [B, H, W, 3]
    labels: npt.NDArray[np.int64]  # [B]
    ids: npt.NDArray[np.int64]  # [B], row in the split: `paths(split)[id]`
    weights: npt.NDArray[np.float64] | None = None  # [B], where the source says any

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class StreamOptions:
    """How images are read. `cpu_limit` is the share of one worker: N workers on one machine must
    not each take all its CPUs.
    """

    images_per_task: int = 512
    read_threads: int | None = None
    prefetch_batches: int = 4
    cpu_limit: float | None = None
    task_cpus: float = 1.0  # that a task asks Ray for
    limits: ImageLimits = DEFAULT_LIMITS
    max_broken_share: float = 0.05
    shuffle: Literal["auto", "images", "runs"] = "auto"
    cache_bytes: int = 0  # of decoded images, kept in memory for the next pass

    @classmethod
    def from_config(cls, config: DataConfig, cpu_limit: float | None = None) -> StreamOptions:
        """Return the options that a data config asks for."""
        return cls(
            images_per_task=config.images_per_task,
            read_threads=config.read_threads,
            prefetch_batches=config.prefetch_batches,
            cpu_limit=cpu_limit,
            limits=config.limits,
            max_broken_share=config.max_broken_share,
            shuffle=config.shuffle,
        )


class Order(TypedDict, total=False):
    """Which images a pass goes through, and how: one worker's share (`rank` of `world`) of a split,
    in the order of the index, shuffled by (`seed`, `epoch`), or drawn by `class_weights`. With
    `images_per_class`, so many of one class stand side by side; with class weights then, classes
    are even. Of a shuffled or drawn order, the first `start` images, counted over all ranks, are
    passed over.
    """

    batch_size: Required[int]
    epoch: int
    seed: int
    shuffle: bool
    rank: int
    world: int
    start: int
    class_weights: Sequence[float] | None
    images_per_class: int | None


class IndexedImages:
    """The images of an index, as batches per split. Picklable; needs a running Ray to iterate."""

    def __init__(
        self, index: Index, spec: PreprocessSpec, options: StreamOptions | None = None
    ) -> None:
        self.classes = index.classes
        self.spec = spec
        self.options = options or StreamOptions()
        needed = _without_blanks(index.table.select(COLUMNS))
        self._splits = {
            split: needed.filter(pc.equal(index.table["split"], split)) for split in SPLITS
        }
        self._broken: dict[str, Broken] = {}
        self._row_refs: dict[str, ray.ObjectRef[pa.Table]] = {}
        self._kept: dict[str, KeptImages] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_row_refs": {}, "_kept": {}}

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Return the images that could not be read any more, though the index held them usable."""
        return tuple(self._broken.values())

    def num_images(self, split: str) -> int:
        """Return the number of images of a split."""
        return int(self._table(split).num_rows)

    def paths(self, split: str) -> list[str]:
        """Return the full paths of a split; a batch's `ids` are positions in it."""
        paths: list[str] = self._table(split)["path"].to_pylist()
        return paths

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """Return the labels of a split; a batch's `ids` are positions in it."""
        labels: npt.NDArray[np.int64] = self._table(split)["label"].to_numpy().astype(np.int64)
        return labels

    def class_totals(self, split: str) -> list[float]:
        """Return per class how many images it has in a split, counted by their weights."""
        totals = np.bincount(
            self.labels(split), weights=self._weights(split), minlength=len(self.classes)
        )
        return [float(total) for total in totals]

    def order(self, split: str, **arguments: Unpack[Order]) -> Ids:
        """Return the row numbers that `batches` with the same arguments goes through.

        Unshuffled, every row occurs once over all ranks and the last batch may be short. Shuffled,
        or drawn by `class_weights`, all ranks get equally many whole batches: up to one batch per
        rank is left out, in each epoch other images (see `order.whole_batches`). What comes from
        `start` on does not depend on who went through what is before it.
        """
        class_weights = arguments.get("class_weights")
        is_shuffled = arguments.get("shuffle", False)
        epoch, seed = arguments.get("epoch", 0), arguments.get("seed", 0)
        rank, world = arguments.get("rank", 0), arguments.get("world", 1)
        num_rows = self.num_images(split)
        if not num_rows or not (is_shuffled or class_weights is not None):
            return shard(np.arange(num_rows, dtype=np.int64), rank, world)
        weights = self._weights(split)
        group = arguments.get("images_per_class")
        if group is not None:
            is_even = class_weights is not None
            labels = self.labels(split)
            ids = grouped(labels, group, epoch, seed, is_even=is_even, weights=weights)
        elif class_weights is not None:
            ids = balanced(self.labels(split), class_weights, epoch, seed, weights)
        elif weights is not None:
            ids = weighted(weights, epoch, seed)
        elif self._shuffles_runs(split):
            ids = shuffled_runs(self._storage_order(split), epoch, seed)
        else:
            ids = shuffled(num_rows, epoch, seed)
        batch_size, start = arguments["batch_size"], arguments.get("start", 0)
        return shard_batches(whole_batches(ids, batch_size, world, start), batch_size, rank, world)

    def num_batches(self, split: str, **arguments: Unpack[Order]) -> int:
        """Return how many batches one pass has for this rank."""
        return -(-len(self.order(split, **arguments)) // arguments["batch_size"])

    def num_left_out(self, split: str, *, batch_size: int, world: int = 1) -> int:
        """Return how many images a shuffled pass leaves out so that every batch is whole."""
        rows = self.num_images(split)
        group = batch_size * world
        return rows % group if rows >= group else 0

    def batches(self, split: str, **arguments: Unpack[Order]) -> Iterator[Batch]:
        """Stream one pass over a split; what is before `start` is not even read.

        Batch k always holds the same images for the same arguments, whatever the speed of the
        machines. An image that cannot be read any more is missing from its batch and listed in
        `broken`; too many of them raise `DataError`. A batch that has lost all of them is left out,
        or raises `DataError` where all ranks go in step, shuffled or drawn, and where nothing is
        left of the pass. Close the iterator to stop reading early.
        """
        in_step = arguments.get("shuffle", False) or arguments.get("class_weights") is not None
        ids = self.order(split, **arguments)
        return self._stream(split, ids, arguments["batch_size"], in_step)

    def _stream(self, split: str, ids: Ids, batch_size: int, in_step: bool) -> Iterator[Batch]:
        read = partial(self._read, split, batch_size)
        labels, weights = self.labels(split), self._weights(split)
        batches = self._kept_of(split).passed(ids, batch_size, read)
        num_passed = 0
        for number, (images, positions) in enumerate(batches):
            mine = ids[positions]
            if not len(mine):
                is_last = (number + 1) * batch_size >= len(ids)
                if not in_step and (num_passed or not is_last):
                    continue
                lost = ids[number * batch_size : (number + 1) * batch_size]
                first = self._broken[self.paths(split)[lost[0]]]
                raise DataError(
                    f"none of the {len(lost)} images of a batch can be read any more, for "
                    f"example {first.path}: {first.reason}"
                )
            num_passed += 1
            yield Batch(images, labels[mine], mine, None if weights is None else weights[mine])

    def _kept_of(self, split: str) -> KeptImages:
        """Return what is kept of a split; the first one that is streamed gets the room it needs."""
        if split not in self._kept:
            left = self.options.cache_bytes - sum(kept.num_bytes for kept in self._kept.values())
            shape = (self.spec.height, self.spec.width, 3)
            self._kept[split] = KeptImages(self.num_images(split), shape, left)
        return self._kept[split]

    def _read(
        self, split: str, batch_size: int, ids: Ids, cuts: Ids
    ) -> Iterator[tuple[Images, Ids]]:
        """Read and decode rows, and yield for each batch its images and their positions."""
        if not len(ids):
            return assemble(iter(()), cuts)
        parallel = count_cpus(self.options.cpu_limit)
        bounds = chunk_bounds(len(ids), batch_size, self._largest_chunk(), parallel)
        largest = int(np.diff(bounds).max())
        ahead = -(-self.options.prefetch_batches * batch_size // largest)
        chunk_bytes = largest * self._image_bytes()
        pace = Pace(
            chunk_bytes,
            # One of many chunks that takes longer than others holds up those behind it.
            max(1, parallel // 8, ahead),
            self.options.cpu_limit,
            self.options.task_cpus,
            slot_bytes=chunk_bytes,
        )
        task = partial(
            _read_chunk,
            table=self._rows_ref(split),
            order=ray.put(ids),
            bounds=bounds,
            spec=self.spec,
            limits=self.options.limits,
            threads=self.options.read_threads,
        )
        chunks = run_chunks(task, len(bounds) - 1, pace)
        return assemble(self._usable(split, chunks), cuts)

    def _usable(self, split: str, chunks: Iterator[Columns]) -> Iterator[Columns]:
        """Pass the chunks on, taking note of broken images and stopping at too many."""
        for columns in chunks:
            reasons = columns["reason"]
            if any(reasons):
                paths = self._table(split)["path"]
                for row, reason in zip(columns["id"].tolist(), reasons.tolist(), strict=True):
                    if reason:
                        path = paths[row].as_py()
                        self._broken[path] = Broken(path, reason)
                total = sum(table.num_rows for table in self._splits.values())
                check_share(self.broken, total, self.options.max_broken_share, "the indexed set")
            yield columns

    def _largest_chunk(self) -> int:
        return max(1, min(self.options.images_per_task, MAX_CHUNK_BYTES // self._image_bytes()))

    def _image_bytes(self) -> int:
        return self.spec.height * self.spec.width * 3

    def _rows_ref(self, split: str) -> ray.ObjectRef[pa.Table]:
        if split not in self._row_refs:
            rows = self._table(split).select([*places.SCHEMA.names, "box"])
            self._row_refs[split] = ray.put(rows.combine_chunks())
            del rows
            give_back_memory()  # of the index, too, where nobody needs it any more
        return self._row_refs[split]

    def _weights(self, split: str) -> npt.NDArray[np.float64] | None:
        """Return how often each image is to be drawn, where the source says; 1 if not of it."""
        column = self._table(split)["weight"]
        if column.null_count == len(column):
            return None
        weights: npt.NDArray[np.float64] = column.fill_null(1.0).to_numpy().astype(np.float64)
        return weights

    def shuffle_in_effect(self, split: str) -> Literal["images", "runs"]:
        """Return how a split is shuffled where nothing is drawn: what `auto` means for it."""
        return "runs" if self.num_images(split) and self._shuffles_runs(split) else "images"

    def _shuffles_runs(self, split: str) -> bool:
        if self.options.shuffle != "auto":
            return self.options.shuffle == "runs"
        containers = self._table(split)["container"]
        return containers.null_count == 0 and is_remote(containers[0].as_py())

    def _storage_order(self, split: str) -> Ids:
        table = self._table(split)
        containers = table["container"].combine_chunks().indices.fill_null(-1).to_numpy()
        offsets = table["offset"].fill_null(0).to_numpy()
        return storage_order(containers.astype(np.int64), offsets)

    def _table(self, split: str) -> pa.Table:
        if split not in self._splits:
            raise DataError(f"unknown split {split!r}; expected one of {', '.join(self._splits)}")
        return self._splits[split]


def _without_blanks(table: pa.Table) -> pa.Table:
    """Return a table that keeps no memory for weights and crop boxes where the source has none: of
    200,000 images 4 MiB, in this process and again in the object store.
    """
    for position, name in enumerate(table.column_names):
        if name in ("weight", "box") and table[name].null_count == table.num_rows:
            table = table.set_column(position, name, pa.nulls(table.num_rows))
    return table


def _read_chunk(
    chunk: int,
    table: ray.ObjectRef[pa.Table],
    order: ray.ObjectRef[Ids],
    bounds: Ids,
    spec: PreprocessSpec,
    limits: ImageLimits,
    threads: int | None,
) -> Columns:
    """Run in a Ray task: read and decode one chunk of the order."""
    rows = ray.get(order)[bounds[chunk] : bounds[chunk + 1]]
    mine = ray.get(table).take(pa.array(rows))
    boxes = mine["box"].to_pylist()
    images = room_for((len(rows), spec.height, spec.width, 3))

    def decode_into(slot: int, data: bytes | Exception) -> str:
        if isinstance(data, Exception):
            return str(data) or type(data).__name__
        try:
            prepare(data, spec, limits, boxes[slot], images[slot])
        except ImageError as error:
            return str(error) or type(error).__name__
        return ""

    reasons = places.read_each(places.places_of(mine), decode_into, threads, limits=limits)
    return {"id": rows, "image": images, "reason": np.array(reasons, dtype=object)}
