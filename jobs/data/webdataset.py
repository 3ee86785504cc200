"""Tar shards as WebDataset names their members: `key.jpg` beside `key.cls`, `.txt` or `.json`.

A tar file has no table of contents, so it is read from one end to the other, once, by a Ray task;
its images are hashed and decoded on the way. Later they are read by their range. The label is the
text of `key.cls` or `key.txt`, or a field of `key.json`; an image without one is left out.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import ray

from jobs.data.chunks import Columns, Pace, run_chunks
from jobs.data.config import DataConfig
from jobs.data.examine import examine_image
from jobs.data.manifest import PARSERS
from jobs.data.quarantine import Broken
from jobs.data.sources import SCHEMA, Listing, Progress, complete
from jobs.data.split import split_of_name
from jobs.data.tar_files import (
    find_problem,
    find_shards,
    is_hidden_key,
    open_stream,
    root_of,
    split_name,
)
from jobs.data.walk import printable
from models.decoders import IMAGE_SUFFIXES
from models.errors import DataError, ImageTooLargeError, StorageError
from models.preprocess import PreprocessSpec
from models.storage import Entry, is_remote

LABEL_MEMBERS = ("cls", "txt")  # in this order, behind a label in the JSON
MAX_TEXT = 64 << 10  # bytes of a label or of JSON


def list_webdataset(
    config: DataConfig, *, progress: Progress | None = None, cpu_limit: float | None = None
) -> Listing:
    """Read all tar files below the URI, or the one it names, and return their images, examined.

    Needs a running Ray. A tar file that was cut short gives the images before the cut, and is
    itself listed as broken; what it has lost is reckoned by the median of the whole ones.
    """
    shards = find_shards(config.uri)
    task = partial(_list_shard, shards=ray.put(shards), config=config)
    tables: list[pa.Table] = []
    broken: list[Broken] = []
    is_whole: list[bool] = []
    ignored = unlabelled = 0
    example = doubled = ""
    # A row says where one image is; a tar file of 1 GiB has some 10,000.
    pace = Pace(chunk_bytes=4 << 20, ahead=16, cpu_limit=cpu_limit)
    for columns in run_chunks(task, len(shards), pace):
        for row in range(len(columns["listing"])):
            tables.append(pa.ipc.open_stream(columns["listing"][row]).read_all())
            ignored += int(columns["ignored"][row])
            unlabelled += int(columns["unlabelled"][row])
            example = example or str(columns["example"][row])
            doubled = doubled or str(columns["doubled"][row])
            is_whole.append(not columns["problem"][row])
            if not is_whole[-1]:
                broken.append(Broken(shards[len(tables) - 1].key, str(columns["problem"][row])))
        if progress is not None:
            progress(len(tables), len(shards))
    table = pa.concat_tables(tables)
    if unlabelled and not len(table):
        raise DataError(
            f"no image of {config.uri} has a label, for example {example}; expected a member "
            f"KEY.cls or KEY.txt, or KEY.json with the key {config.label_column!r} (set "
            "data.label_column) beside each KEY.jpg"
        )
    warnings = []
    if unlabelled:
        warnings.append(
            f"{unlabelled:,} images have no label beside them and are left out, for example "
            f"{example}"
        )
    if doubled:
        warnings.append(
            f"there are samples with several images, of which the first is taken and the others "
            f"are ignored, for example {doubled}"
        )
    return Listing(
        table.unify_dictionaries(),
        ignored,
        tuple(broken),
        tuple(warnings),
        num_lost=_count_lost([len(each) for each in tables], is_whole),
    )


def _count_lost(counts: Sequence[int], is_whole: Sequence[bool]) -> int:
    """Return how many images the files that were cut short have lost, beside one for each that is
    counted as broken. Files of one set are about as large as each other.
    """
    whole = [count for count, is_it in zip(counts, is_whole, strict=True) if is_it]
    usual = int(np.median(whole)) if whole else max(counts)
    return sum(
        max(0, usual - count - 1)
        for count, is_it in zip(counts, is_whole, strict=True)
        if not is_it
    )


def _list_shard(chunk: int, shards: ray.ObjectRef[list[Entry]], config: DataConfig) -> Columns:
    """Run in a Ray task: read one tar file through."""
    shard = ray.get(shards)[chunk]
    found = ShardReader(shard, config)
    table = found.read()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {
        "listing": np.array([sink.getvalue().to_pybytes()], dtype=object),
        "ignored": np.array([found.ignored]),
        "unlabelled": np.array([found.unlabelled]),
        "example": np.array([found.example], dtype=object),
        "problem": np.array([found.problem], dtype=object),
        "doubled": np.array([found.doubled], dtype=object),
    }


class ShardReader:
    """Reads one tar file through, and counts what it leaves out."""

    def __init__(self, shard: Entry, config: DataConfig) -> None:
        self.ignored = 0  # members that are neither an image nor text
        self.unlabelled = 0
        self.example = ""  # of an image without a label
        self.problem = ""  # why the file could not be read to its end
        self.doubled = ""  # an image beside another one of the same sample
        self._shard = shard
        self._config = config
        # Only below what the user named: the folders above say nothing about splits.
        self._split = split_of_name(shard.key.removeprefix(f"{root_of(config.uri)}/"))
        self._rows: list[dict[str, Any]] = []

    def read(self) -> pa.Table:
        """Return a listing of the images."""
        offset = 0
        try:
            with (
                open_stream(self._shard.key) as stream,
                tarfile.open(fileobj=stream, mode="r|") as tar,
            ):
                try:
                    self._read_members(tar)
                finally:
                    offset = tar.offset
            problem = find_problem(self._shard, offset)
        except tarfile.TarError as error:
            # What was begun is left out: its label may lie behind the cut.
            problem = f"the tar file is damaged or cut short at byte {offset:,}: {error}"
        except StorageError as error:
            if is_remote(self._shard.key):
                raise  # no fault of the file
            problem = str(error)
        if problem:
            self.problem = f"{problem}; what follows in it is lost"
        columns = {name: [row.get(name) for row in self._rows] for name in SCHEMA.names}
        return pa.Table.from_batches([complete(columns, len(self._rows))])

    def _read_members(self, tar: tarfile.TarFile) -> None:
        sample: dict[str, Any] = {}
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # a kilobyte of each
            key, extension = split_name(member.name)
            if not member.isfile() or is_hidden_key(key):
                continue
            if sample and sample["key"] != key:
                self._finish(sample)
                sample = {}
            sample["key"] = key
            self._take(sample, member, extension, tar.extractfile(member))
        if sample:
            self._finish(sample)

    def _take(
        self, sample: dict[str, Any], member: tarfile.TarInfo, extension: str, file: Any
    ) -> None:
        """Take what one member says of a sample; its bytes have to be read now or never."""
        if f".{extension}".endswith(IMAGE_SUFFIXES):
            # Of `1.depth.png` and `1.png` the second is the image; two with as many dots are told.
            rank, best = extension.count("."), sample.get("rank", math.inf)
            if rank == best:
                self.doubled = self.doubled or printable(f"{self._shard.key}/{member.name}")
            if rank >= best:
                self.ignored += 1
                return
            self.ignored += "rank" in sample
            sample |= {
                "rank": rank,
                "path": printable(f"{self._shard.key}/{member.name}"),
                "container": self._shard.key,
                "offset": member.offset_data,
                "size": member.size,
                "content": self._content(member, file),
            }
        elif extension in ("json", *LABEL_MEMBERS) and member.size <= MAX_TEXT:
            sample[extension] = file.read().decode("utf-8", "replace").strip()
        else:
            self.ignored += 1

    def _content(self, member: tarfile.TarInfo, file: Any) -> bytes | ImageTooLargeError:
        try:
            self._config.limits.check_bytes(member.size)
        except ImageTooLargeError as error:
            return error
        return bytes(file.read())

    def _finish(self, sample: dict[str, Any]) -> None:
        """Turn a sample into a row, if it is an image with a label."""
        if "path" not in sample:
            self.ignored += 1
            return
        given = self._read_json(sample)
        label = given.get("label") or next(
            (sample[name] for name in LABEL_MEMBERS if sample.get(name)), None
        )
        if not label:
            self.unlabelled += 1
            self.example = self.example or str(sample["path"])
            return
        row = {**sample, "label": label, "split": given.get("split", self._split)}
        row |= {name: given[name] for name in ("group", "weight", "box") if name in given}
        found = examine_image(
            sample.pop("content"), PreprocessSpec(), self._config.limits, row.get("box")
        )
        self._add({**row, **found._asdict()})

    def _read_json(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return what the JSON of a sample says, by our names. Raises `DataError`."""
        if "json" not in sample:
            return {}
        where = printable(f"{self._shard.key}/{sample['key']}.json")
        try:
            fields = orjson.loads(sample["json"])
        except orjson.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise DataError(f"{where} is not a JSON object but {type(fields).__name__}")
        given: dict[str, Any] = {}
        parsers: dict[str, Callable[[str], Any]] = {"label": str, **PARSERS}
        for name, parse in parsers.items():
            column = getattr(self._config, f"{name}_column") or name
            text = as_text(fields.get(column))
            if not text:
                continue
            try:
                given[name] = parse(text)
            except ValueError as error:
                raise DataError(f"{where}: {column!r} says {text!r}; expected {error}") from None
        return given

    def _add(self, row: dict[str, Any]) -> None:
        row.pop("content", None)
        self._rows.append(row)


def as_text(value: object) -> str:
    """Return what a field of JSON says, trimmed: "" for none."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else orjson.dumps(value).decode()
