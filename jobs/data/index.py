"""The index of a data set: which images it has, of which class, in which split, and which are
broken.

One Ray Data pass reads, hashes and decodes every listed image, so that what is broken is known
before training starts. It keeps a row of text per image and never the pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs.data.chunks import Columns, Pace, run_chunks
from jobs.data.config import DataConfig
from jobs.data.labels import number_labels
from jobs.data.locate import choose_threads, read_image
from jobs.data.quarantine import Broken, check_share
from jobs.data.sources import Listing, list_source
from jobs.data.split import SPLITS, assign_splits
from models.decoders import ImageLimits
from models.errors import DataError, ImageError, NotFoundError, StorageError
from models.preprocess import PreprocessSpec, prepare
from models.storage import is_remote

# Called with (images read so far, images in all).
Progress = Callable[[int, int], None]

SMALL_CLASS = 50
INDEX_CHUNK = 64
BYTES_PER_ROW = 200  # digest and reason of one image
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Index:
    """The usable images, and an account of what was left out.

    Columns of `table`: path (full), label (position in `classes`), split, sha256 of the file. Rows
    are in the order of their paths, so that two passes over one set give equal tables.
    """

    table: pa.Table
    classes: tuple[str, ...]
    quarantine: tuple[Broken, ...] = ()
    ignored: int = 0
    crossing: tuple[tuple[str, ...], ...] = ()  # paths with one content in two given splits
    warnings: tuple[str, ...] = ()

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images per class and split: `counts[class][split]`."""
        matrix = _count(self.table, len(self.classes))
        return {
            name: dict(zip(SPLITS, row, strict=True))
            for name, row in zip(self.classes, matrix.tolist(), strict=True)
        }

    def num_images(self, split: str | None = None) -> int:
        """Return how many usable images there are, in all or in one split."""
        if split is None:
            return int(self.table.num_rows)
        return sum(row[split] for row in self.counts.values())


def build_index(
    config: DataConfig,
    spec: PreprocessSpec,
    progress: Progress | None = None,
    *,
    cpu_limit: float | None = None,
) -> Index:
    """List the source, read every image once, and return what can be trained on.

    Raises `DataError` when the set makes no sense (labels, too much broken, a class without
    training images) and `StorageError` when it cannot be reached. Needs a running Ray.
    """
    listing = list_source(config)
    table = listing.table.sort_by("path")
    labels, classes = number_labels(table, config)
    digests, reasons = _examine(table["path"], config, spec, progress, cpu_limit)
    is_usable = pc.equal(reasons, "")
    quarantine = _list_broken(table["path"], reasons, pc.invert(is_usable))
    check_share(quarantine, len(table), config.max_broken_share, config.uri)
    if len(quarantine) == len(table):
        raise DataError(f"{config.uri} has no usable image among {len(table):,}")
    usable = _assemble(table, labels, digests, is_usable, config)
    counts = _count(usable, len(classes))
    _refuse_untrainable(config.uri, counts, classes)
    crossed = _find_crossing(usable)
    return Index(
        table=usable,
        classes=classes,
        quarantine=quarantine,
        ignored=listing.ignored,
        crossing=crossed,
        warnings=(
            *_warn_of_listing(listing),
            *_warn_of_counts(counts, classes),
            *_warn_of_copies(usable, crossed),
        ),
    )


def _examine(
    paths: pa.ChunkedArray,
    config: DataConfig,
    spec: PreprocessSpec,
    progress: Progress | None,
    cpu_limit: float | None,
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return per image the digest of its content, and why it cannot be used ("" if it can)."""
    digests: list[pa.Array] = []
    reasons: list[pa.Array] = []
    done = 0
    for columns in _examine_chunks(paths, config, spec, cpu_limit):
        digests.append(pa.array(columns["sha256"], pa.string()))
        reasons.append(pa.array(columns["reason"], pa.string()))
        done += len(reasons[-1])
        if progress is not None:
            progress(done, len(paths))
    return pa.chunked_array(digests, pa.string()), pa.chunked_array(reasons, pa.string())


def _list_broken(
    paths: pa.ChunkedArray, reasons: pa.ChunkedArray, is_broken: pa.ChunkedArray
) -> tuple[Broken, ...]:
    broken = zip(
        paths.filter(is_broken).to_pylist(), reasons.filter(is_broken).to_pylist(), strict=True
    )
    return tuple(Broken(path, reason) for path, reason in broken)


def _examine_chunks(
    paths: pa.ChunkedArray, config: DataConfig, spec: PreprocessSpec, cpu_limit: float | None
) -> Iterator[Columns]:
    # Small enough that a small set keeps every CPU busy and the progress moves.
    size = min(config.images_per_task, INDEX_CHUNK)
    task = partial(
        _examine_chunk,
        paths=ray.put(paths.combine_chunks()),
        size=size,
        spec=spec,
        limits=config.limits,
        threads=config.read_threads,
    )
    pace = Pace(chunk_bytes=size * BYTES_PER_ROW, ahead=64, cpu_limit=cpu_limit)
    return run_chunks(task, -(-len(paths) // size), pace)


def _examine_chunk(
    chunk: int,
    paths: ray.ObjectRef[pa.StringArray],
    size: int,
    spec: PreprocessSpec,
    limits: ImageLimits,
    threads: int | None,
) -> Columns:
    """Run in a Ray task: read, hash and decode one chunk of images."""
    mine = ray.get(paths).slice(chunk * size, size).to_pylist()
    with ThreadPoolExecutor(threads or choose_threads(mine[0])) as pool:
        results = list(pool.map(partial(examine_image, spec=spec, limits=limits), mine))
    digests, reasons = zip(*results, strict=True)
    return {
        "sha256": np.array(digests, dtype=object),
        "reason": np.array(reasons, dtype=object),
    }


def examine_image(path: str, spec: PreprocessSpec, limits: ImageLimits) -> tuple[str, str]:
    """Return the SHA-256 of one image file and the reason why it cannot be used, "" if it can.

    A missing file is that image's fault, and so is one on a disk that cannot be read; a refused key
    or a dead store is everybody's and raises.
    """
    try:
        data = read_image(path)
    except NotFoundError as error:
        return "", str(error)
    except StorageError as error:
        if is_remote(path):
            raise
        return "", str(error)
    digest = hashlib.sha256(data).hexdigest()
    try:
        prepare(data, spec, limits)
    except ImageError as error:
        return digest, str(error)
    return digest, ""


def _assemble(
    table: pa.Table,
    labels: npt.NDArray[np.int32],
    digests: pa.ChunkedArray,
    is_usable: pa.ChunkedArray,
    config: DataConfig,
) -> pa.Table:
    kept = table.filter(is_usable)
    sha256 = digests.filter(is_usable)
    splits = assign_splits(
        sha256.to_pylist(),
        kept["split"].to_pylist(),
        config.split.seed,
        validation=config.split.validation,
        test=config.split.test,
    )
    return pa.table(
        [
            kept["path"],
            pa.array(labels[is_usable.to_numpy()]),
            pa.array(splits, pa.string()),
            sha256,
        ],
        schema=SCHEMA,
    )


def _count(table: pa.Table, num_classes: int) -> npt.NDArray[np.int64]:
    """Return images per class (rows) and split (columns, in the order of `SPLITS`)."""
    labels = table["label"].to_numpy()
    counts = np.zeros((num_classes, len(SPLITS)), dtype=np.int64)
    for column, split in enumerate(SPLITS):
        in_split = pc.equal(table["split"], split).to_numpy()
        counts[:, column] = np.bincount(labels[in_split], minlength=num_classes)
    return counts


def _refuse_untrainable(uri: str, counts: npt.NDArray[np.int64], classes: tuple[str, ...]) -> None:
    untrained = [name for name, row in zip(classes, counts, strict=True) if row[0] == 0]
    if untrained:
        raise DataError(
            f"{uri} has no usable training image of {', '.join(map(repr, untrained))}; add images, "
            "remove the class, or change data.split"
        )


def _warn_of_listing(listing: Listing) -> Iterator[str]:
    yield from listing.warnings
    if listing.ignored:
        yield f"{listing.ignored:,} files are not images by their names and were ignored"


def _warn_of_counts(counts: npt.NDArray[np.int64], classes: tuple[str, ...]) -> Iterator[str]:
    for column, split in enumerate(SPLITS[1:], start=1):
        without = [name for name, row in zip(classes, counts, strict=True) if row[column] == 0]
        if len(without) == len(classes):
            yield f"there is no {split} image at all"
        elif without:
            yield f"no {split} image of {', '.join(map(repr, without))}: no figure for them there"
    small = [
        f"{name!r} ({total})"
        for name, total in zip(classes, counts.sum(axis=1).tolist(), strict=True)
        if total < SMALL_CLASS
    ]
    if small:
        yield f"fewer than {SMALL_CLASS} images of {', '.join(small)}: expect uncertain results"


def _find_crossing(table: pa.Table) -> tuple[tuple[str, ...], ...]:
    """Return the paths of each content that lies in more than one split."""
    copies = table.filter(pc.is_in(table["sha256"], _with_several(table, "split")))
    groups: dict[str, list[str]] = {}
    for digest, path in zip(copies["sha256"].to_pylist(), copies["path"].to_pylist(), strict=True):
        groups.setdefault(digest, []).append(path)
    return tuple(tuple(paths) for paths in groups.values())


def _warn_of_copies(table: pa.Table, crossed: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    if crossed:
        yield (
            f"{len(crossed):,} images lie in more than one of the given splits, which flatters "
            f"the figures; for example {' and '.join(crossed[0][:2])}"
        )
    torn = _with_several(table, "label")
    if len(torn):
        yield f"{len(torn):,} images have copies under two labels"


def _with_several(table: pa.Table, column: str) -> pa.Array:
    """Return the contents that occur with more than one value of a column."""
    counts = table.group_by("sha256").aggregate([(column, "count_distinct")])
    several = pc.greater(counts[f"{column}_count_distinct"], 1)
    return counts["sha256"].filter(several).combine_chunks()
