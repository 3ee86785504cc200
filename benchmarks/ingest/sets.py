"""The sets that are read: photos as files, as a packed set and as tar files; small synthetic images
in packed sets of any size.

Made once below `.sightline/ingest` and kept. A set is complete when `set.json` is in its folder,
which is written last. Photos are repeated until there are enough of them, each copy with other
bytes behind its end, which no decoder reads: distinct files to a store, a digest and the kernel.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from benchmarks.fixtures import ROOT, STATE, collect_images
from jobs.data.shards import (
    COMMIT,
    FIELDS,
    INDEX,
    dump_commit,
    dump_index,
    read_shard,
    shard_name,
    write_shard,
)
from models.decoders import IMAGE_SUFFIXES, read_size

RECORD = "set.json"
NAMES = "names.json"  # of a folder of tar files: the images in their order
SHARD_BYTES = 64 << 20
SYNTHETIC_SIDE = 64
SYNTHETIC_CLASSES = 10


@dataclass(frozen=True)
class Sample:
    """One image of a set."""

    path: str  # class/name
    data: bytes

    @property
    def label(self) -> str:
        """The class."""
        return self.path.partition("/")[0]


def photo_set(source: Path | None, count: int) -> Path:
    """Return a folder with photos in the folders `loose`, `packed` and `tars`, made or used
    again; synthetic photos where there is no source.
    """
    about: dict[str, object] = {"photos": str(source), "count": count}
    return make_set(
        STATE / "ingest" / f"photos-{count}", about, partial(_write_photos, source, count)
    )


def _write_photos(source: Path | None, count: int, folder: Path) -> None:
    if source is None:
        source = folder / "synthetic"
        collect_images(None, source / "even")
        (source / "odd").mkdir()
        for path in sorted((source / "even").iterdir())[1::2]:
            path.rename(source / "odd" / path.name)
    write_loose(folder / "loose", photo_samples(source, count))
    write_tars(folder / "tars", photo_samples(source, count))
    # As a user does it, so that the layout is the one that users read.
    command = [
        sys.executable,
        "-m",
        "jobs.data.pack",
        *(str(folder / "loose"), str(folder / "packed")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def storage_names(folder: Path) -> list[str]:
    """Return class and name of every image of a folder of a set, as they lie in storage."""
    if (folder / NAMES).exists():
        names: list[str] = json.loads((folder / NAMES).read_text())
        return names
    if (folder / INDEX).exists():
        index = pa.ipc.open_file(pa.BufferReader((folder / INDEX).read_bytes())).read_all()
        rows = index.select(["shard", "offset", "path"])
        rows = rows.set_column(0, "shard", rows["shard"].cast(pa.string()))
        paths = rows.sort_by([("shard", "ascending"), ("offset", "ascending")])["path"]
        return ["/".join(path.rsplit("/", 2)[-2:]) for path in paths.to_pylist()]
    return [f"{path.parent.name}/{path.name}" for path in find_photos(folder / "train")]


def photo_samples(source: Path, count: int) -> Iterator[Sample]:
    """Yield `count` distinct photos from the images below a folder of classes, class by class."""
    found = find_photos(source)
    for number, path in enumerate(found):
        data = path.read_bytes()
        copies = (number + 1) * count // len(found) - number * count // len(found)
        for copy in range(copies):
            name = f"{path.parent.name}/{copy:03}-{path.name}"
            yield Sample(name, data + copy.to_bytes(4, "big") if copy else data)


def find_photos(source: Path) -> list[Path]:
    """Return the images below a folder, by class, then by name."""
    found = [path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise SystemExit(f"no images below {source}; expected {', '.join(IMAGE_SUFFIXES)}")
    return sorted(found, key=lambda path: (path.parent.name, path.name, str(path)))


def synthetic_samples(count: int) -> Iterator[Sample]:
    """Yield `count` distinct small JPEGs: a coarse pattern by number, 1.2 kB each."""
    import simplejpeg

    side = SYNTHETIC_SIDE
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = np.ascontiguousarray(coarse.repeat(side // 8, 0).repeat(side // 8, 1))
        name = f"class-{number * SYNTHETIC_CLASSES // count}/{number:07}.jpg"
        yield Sample(name, simplejpeg.encode_jpeg(image, quality=80))


def write_loose(folder: Path, samples: Iterator[Sample]) -> None:
    """Write a folder with the split `train` and, so that nothing of it is split off, one image per
    class in each other split.
    """
    seen: set[str] = set()
    for sample in samples:
        path = folder / "train" / sample.path
        if sample.label not in seen:
            seen.add(sample.label)
            for split in ("train", "validation", "test"):
                (folder / split / sample.label).mkdir(parents=True)
                if split != "train":
                    other = folder / split / sample.label / f"{split}.jpg"
                    other.write_bytes(sample.data + split.encode())
        path.write_bytes(sample.data)


def write_tars(folder: Path, samples: Iterator[Sample]) -> None:
    """Write tar files as WebDataset does, mixed, since it shuffles a few thousand at a time only:
    `000123.jpg` with the number of the class in `000123.cls`.
    """
    folder.mkdir(parents=True)
    listed = list(samples)
    order = np.random.default_rng(0).permutation(len(listed)).tolist()
    (folder / NAMES).write_text(json.dumps([listed[position].path for position in order]))
    classes = sorted({sample.label for sample in listed})
    place = 0
    for number, some in enumerate(_groups(listed[position] for position in order)):
        with tarfile.open(folder / f"train-{number:05}.tar", "w") as writer:
            for sample in some:
                _add(writer, f"{place:07}.jpg", sample.data)
                _add(writer, f"{place:07}.cls", b"%d" % classes.index(sample.label))
                place += 1


def _add(writer: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    writer.addfile(entry, io.BytesIO(data))


def write_packed(folder: Path, samples: Iterator[Sample]) -> None:
    """Write a packed set of training images shard by shard, in the order given."""
    folder.mkdir(parents=True)
    shards, parts = [], []
    for number, some in enumerate(_groups(samples)):
        name = shard_name(number)
        write_shard(folder / name, _columns(some), [sample.data for sample in some])
        with pyarrow.parquet.ParquetFile(folder / name) as file:
            part = read_shard(file, name)
        parts.append(part.append_column("shard", pa.array([name] * len(part))))
        shards.append({"name": name, "bytes": (folder / name).stat().st_size})
    table = pa.concat_tables(parts)
    shard_column = table["shard"].combine_chunks().dictionary_encode()
    table = table.set_column(table.column_names.index("shard"), "shard", shard_column)
    index = dump_index(table)
    (folder / INDEX).write_bytes(index)
    classes = sorted(pc.unique(table["label"]).to_pylist())
    commit = dump_commit({}, classes=classes, index=index, shards=shards)
    (folder / COMMIT).write_bytes(commit)


def _groups(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    some: list[Sample] = []
    size = 0
    for sample in samples:
        some.append(sample)
        size += len(sample.data)
        if size >= SHARD_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _columns(samples: Sequence[Sample]) -> pa.Table:
    sizes = [read_size(sample.data) for sample in samples]
    return pa.table(
        [
            pa.array([len(sample.data) for sample in samples]),
            pa.array([sample.label for sample in samples]),
            pa.array([sample.path for sample in samples]),
            pa.array([hashlib.sha256(sample.data).hexdigest() for sample in samples]),
            pa.array([width for _, width in sizes], pa.int32()),
            pa.array([height for height, _ in sizes], pa.int32()),
            pa.array(["train"] * len(samples)),
        ],
        schema=pa.schema(FIELDS),
    )


def make_set(folder: Path, about: dict[str, object], write: Callable[[Path], None]) -> Path:
    """Return a set's folder, written now unless the same one is there already."""
    record = folder / RECORD
    if record.is_file() and json.loads(record.read_text()) == about:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder)
    record.write_text(json.dumps(about))
    return folder
