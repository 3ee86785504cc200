"""The index of a data set: which images it has, of which class, in which split, and which are
broken.

One pass of Ray tasks reads, hashes and decodes every listed image, so that what is broken is known
before training starts. It keeps a row of text per image and never the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.data import places, sources
from jobs.data.chunks import Columns
from jobs.data.config import DataConfig
from jobs.data.examine import Examined, examine_image
from jobs.data.image_pass import pass_over
from jobs.data.labels import Labels, drop_labels, number_labels, refuse_empty
from jobs.data.leave_out import apply_leave_out, load_leave_out
from jobs.data.memory import give_back_memory
from jobs.data.quarantine import Broken, check_share
from jobs.data.sources import Listing, Progress, list_source
from jobs.data.split import SPLITS, assign_splits
from models.decoders import ImageLimits
from models.errors import DataError
from models.preprocess import PreprocessSpec

SMALL_CLASS = 50
ROWS_AT_ONCE = 65_536
BYTES_PER_ROW = 200  # digest and reason of one image
SCHEMA = pa.schema(
    [
        *places.FIELDS,
        pa.field("label", pa.int32()),
        *sources.GIVEN,
        *(field for field in sources.EXAMINED if field.name != "reason"),
    ]
)

# Chooses the rows of a listing to look at, numbers their labels, and says of which classes.
Matcher = Callable[[pa.Table, DataConfig], tuple[pa.Table, Labels, tuple[str, ...]]]


@dataclass(frozen=True)
class Index:
    """The usable images, and an account of what was left out.

    The columns of `table` are those of `SCHEMA`: where the image lies, label (position in
    `classes`), split, what else the source says of it, sha256 of the file and its size in pixels.
    Rows are in the order of their paths, so that two passes over one set give equal tables, and a
    packed set has the order of the one it was packed from.
    """

    table: pa.Table
    classes: tuple[str, ...]
    quarantine: tuple[Broken, ...] = ()
    num_lost: int = 0  # see `sources.Listing`
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
    container_progress: Progress | None = None,
    matcher: Matcher | None = None,
) -> Index:
    """List the source, read every image once, and return what can be trained on. `progress` counts
    images, `container_progress` tar files that are read through to list them.

    With a `matcher` the set is there to judge a model that has its classes already: they need no
    images.

    Raises `DataError` when the set makes no sense (labels, too much broken, a class without
    training images) and `StorageError` when it cannot be reached. Needs a running Ray.
    """
    index = _build(config, spec, progress, cpu_limit, container_progress, matcher)
    give_back_memory()  # of 200,000 images the steps left 0.2 GiB
    return index


def _build(
    config: DataConfig,
    spec: PreprocessSpec,
    progress: Progress | None,
    cpu_limit: float | None,
    container_progress: Progress | None,
    matcher: Matcher | None,
) -> Index:
    marked = None if config.leave_out is None else load_leave_out(config.leave_out)
    listing = list_source(config, container_progress, cpu_limit=cpu_limit)
    table = drop_labels(listing.table, config, is_strict=matcher is None).sort_by("path")
    dropped = tuple(_warn_of_dropped(listing, table, config))
    if matcher is None:
        refuse_empty(config.uri, listing.empty)
        labels, classes = number_labels(table, config, listing.classes)
    else:
        table, labels, classes = matcher(table, config)
    if table["reason"].null_count:
        table = _examine(table, config, spec, progress, cpu_limit)
    if marked is not None:
        kept = apply_leave_out(table, config, marked)
        table, labels = table.filter(pa.array(kept.rows)), labels[kept.rows]
        dropped = (*dropped, *kept.warnings)
    is_usable = pc.equal(table["reason"], "")
    broken = _list_broken(table["path"], table["reason"], pc.invert(is_usable))
    quarantine = (*listing.broken, *broken)
    total = len(table) + len(listing.broken)
    check_share(quarantine, total, config.max_broken_share, config.uri, listing.num_lost)
    if len(broken) == len(table):
        raise DataError(f"{config.uri} has no usable image among {len(table):,}")
    strata = labels if matcher is None else _own_labels(table, config)
    usable = _assemble(table, labels, strata, is_usable, config, carves=listing.classes is None)
    counts = _count(usable, len(classes))
    if matcher is None:
        _refuse_untrainable(config.uri, counts, classes)
    crossed = _find_crossing(usable)
    return Index(
        table=usable,
        classes=classes,
        quarantine=quarantine,
        num_lost=listing.num_lost,
        ignored=listing.ignored,
        crossing=crossed,
        warnings=(
            *_warn_of_listing(listing),
            *dropped,
            *(_warn_of_counts(counts, classes) if matcher is None else ()),
            *_warn_of_copies(usable, crossed),
            *_warn_of_groups(usable),
        ),
    )


def _examine(
    table: pa.Table,
    config: DataConfig,
    spec: PreprocessSpec,
    progress: Progress | None,
    cpu_limit: float | None,
) -> pa.Table:
    """Fill in per image what reading it shows."""
    found: dict[str, list[pa.Array]] = {name: [] for name in Examined._fields}
    done = 0
    look = partial(_look, spec=spec, limits=config.limits, threads=config.read_threads)
    for columns in pass_over(table, look, config, bytes_per_row=BYTES_PER_ROW, cpu_limit=cpu_limit):
        for name, chunks in found.items():
            chunks.append(pa.array(columns[name], sources.SCHEMA.field(name).type))
        done += len(columns["reason"])
        if progress is not None:
            progress(done, len(table))
    for name, chunks in found.items():
        field = sources.SCHEMA.field(name)
        column = pa.chunked_array(chunks, field.type)
        table = table.set_column(table.column_names.index(name), field, column)
    return table


def _list_broken(
    paths: pa.ChunkedArray, reasons: pa.ChunkedArray, is_broken: pa.ChunkedArray
) -> tuple[Broken, ...]:
    broken = zip(
        paths.filter(is_broken).to_pylist(), reasons.filter(is_broken).to_pylist(), strict=True
    )
    return tuple(Broken(path, reason) for path, reason in broken)


def _look(
    mine: pa.Table, spec: PreprocessSpec, limits: ImageLimits, threads: int | None
) -> Columns:
    """Run in a Ray task: read, hash and decode some images."""
    boxes = mine["box"].to_pylist()

    def examine(position: int, data: bytes | Exception) -> Examined:
        return examine_image(data, spec, limits, boxes[position])

    results: list[Examined] = places.read_each(
        places.places_of(mine), examine, threads, limits=limits
    )
    columns = zip(*results, strict=True)
    return {
        name: np.array(values, dtype=object)
        for name, values in zip(Examined._fields, columns, strict=True)
    }


def _assemble(
    table: pa.Table,
    labels: npt.NDArray[np.int32],
    strata: npt.NDArray[np.int32],
    is_usable: pa.ChunkedArray,
    config: DataConfig,
    *,
    carves: bool,
) -> pa.Table:
    kept = table.filter(is_usable)
    numbers = labels[is_usable.to_numpy()]
    strata = strata[is_usable.to_numpy()]
    given = kept["split"].combine_chunks().dictionary_encode()
    names = [*given.dictionary.to_pylist(), None]
    splits = assign_splits(
        _values(kept["sha256"]),
        strata,
        [names[code] for code in given.indices.fill_null(len(names) - 1).to_pylist()],
        _values(kept["group"]),
        config.split,
        carves=carves,
    )
    computed = {"label": pa.array(numbers), "split": pa.array(splits, pa.string())}
    columns = [computed[name] if name in computed else kept[name] for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA).combine_chunks()


def _own_labels(table: pa.Table, config: DataConfig) -> npt.NDArray[np.int32]:
    """Return numbers of the labels as training tells them apart, so that a set is split as it was
    there, also where a label map has merged some since.
    """
    encoded = table["label"].combine_chunks().dictionary_encode()
    named = [config.new_names.get(name, name) for name in encoded.dictionary.to_pylist()]
    number = {name: place for place, name in enumerate(dict.fromkeys(named))}
    to_class = np.array([number[name] for name in named], dtype=np.int32)
    own: npt.NDArray[np.int32] = to_class[encoded.indices.to_numpy(zero_copy_only=False)]
    return own


def _values(column: pa.ChunkedArray) -> Iterator[str | None]:
    """Yield the values of a column without having all of them as Python objects at once."""
    for start in range(0, len(column), ROWS_AT_ONCE):
        yield from column.slice(start, ROWS_AT_ONCE).to_pylist()


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


def _warn_of_dropped(listing: Listing, table: pa.Table, config: DataConfig) -> Iterator[str]:
    dropped = listing.table.num_rows - table.num_rows
    if dropped:
        names = ", ".join(map(repr, config.drop))
        yield f"{dropped:,} images of {names} were left out, as data.drop says"


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


def _warn_of_groups(table: pa.Table) -> Iterator[str]:
    """Warn of groups that the source itself puts on more than one side."""
    grouped = table.filter(pc.is_valid(table["group"])).select(["group", "split"])
    counts = grouped.group_by("group").aggregate([("split", "count_distinct")])
    torn = counts.filter(pc.greater(counts["split_count_distinct"], 1))["group"]
    if len(torn):
        yield (
            f"{len(torn):,} groups lie in more than one of the given splits, which flatters the "
            f"figures; for example {torn[0].as_py()!r}"
        )


def _with_several(table: pa.Table, column: str) -> pa.Array:
    """Return the contents that occur with more than one value of a column."""
    counts = table.group_by("sha256").aggregate([(column, "count_distinct")])
    several = pc.greater(counts[f"{column}_count_distinct"], 1)
    return counts["sha256"].filter(several).combine_chunks()
