"""Which images go into which shard of a packed set: decided once, and noted for later runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console

from cluster.environment import data_cpus
from jobs.data import shards
from jobs.data.config import DataConfig
from jobs.data.index import Index
from jobs.data.leave_out import root_of
from jobs.data.order import shuffled_runs
from jobs.data.quarantine import Broken
from jobs.data.tables import read_index
from models.preprocess import PreprocessSpec
from models.storage import Store, normalise_uri

PLAN = "plan.json"
WORK_INDEX = "index.arrow"
MIB = 1 << 20
SHARDS_AT_LEAST = 16  # of a set that is large enough: tasks and readers share them out
PIECE_ROWS = 512
SMALLEST_SHARD, LARGEST_SHARD = 8 * MIB, 128 * MIB


@dataclass(frozen=True)
class PackOptions:
    """How a set is packed. `max_side` in pixels and `shard_bytes` may be None: images stay as they
    are, shards have 8 to 128 MiB.
    """

    uri: str
    max_side: int | None = None
    shard_bytes: int | None = None
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class Plan:
    """Which images go into which shard: shard n holds rows `bounds[n]` to `bounds[n + 1]`.

    `rows` has the columns of an index, but labels by name and paths from the root of the source.
    """

    rows: pa.Table
    bounds: tuple[int, ...]
    classes: tuple[str, ...]
    broken: tuple[Broken, ...]
    num_lost: int  # see `sources.Listing`
    fingerprint: str
    source: str
    overwrites: bool = False  # made to replace a set, which is gone by now

    @property
    def num_shards(self) -> int:
        """Return the number of shards."""
        return len(self.bounds) - 1

    def fits(self, fingerprint: str, options: PackOptions) -> bool:
        """Say whether a run with these settings goes on with it: one that overwrites begins anew,
        unless the plan is that of its own beginning.
        """
        return self.fingerprint == fingerprint and (self.overwrites or not options.overwrite)


def load_plan(work: Store) -> Plan:
    """Return the plan of an earlier run."""
    noted = json.loads(work.read(PLAN))
    return Plan(
        rows=shards.load_index(work.read(WORK_INDEX), f"{work.uri}/{WORK_INDEX}", noted["rows"]),
        bounds=tuple(noted["bounds"]),
        classes=tuple(noted["classes"]),
        broken=tuple(Broken(*one) for one in noted["broken"]),
        num_lost=noted.get("num_lost", 0),  # earlier versions noted none
        fingerprint=noted["fingerprint"],
        source=noted["source"],
        overwrites=noted["overwrites"],
    )


def make_plan(config: DataConfig, options: PackOptions, fingerprint: str, console: Console) -> Plan:
    """Examine the source and say what goes where. Writes nothing."""
    index = read_index(config, PreprocessSpec(), console, cpu_limit=data_cpus())
    rows = _mixed(index, config, options.seed)
    return Plan(
        rows=rows,
        bounds=cut(rows["size"].to_numpy(), options.shard_bytes),
        classes=index.classes,
        broken=index.quarantine,
        num_lost=index.num_lost,
        fingerprint=fingerprint,
        source=normalise_uri(config.uri),
        overwrites=options.overwrite,
    )


def note_plan(work: Store, plan: Plan) -> None:
    """Keep a plan for a run that goes on with it."""
    data = shards.dump_index(plan.rows)
    work.write(WORK_INDEX, data)
    noted = {
        "fingerprint": plan.fingerprint,
        "source": plan.source,
        "overwrites": plan.overwrites,
        "rows": hashlib.sha256(data).hexdigest(),
        "bounds": plan.bounds,
        "classes": plan.classes,
        "broken": [(one.path, one.reason) for one in plan.broken],
        "num_lost": plan.num_lost,
    }
    work.write(PLAN, json.dumps(noted).encode())


def _mixed(index: Index, config: DataConfig, seed: int) -> pa.Table:
    """Return the rows in a random order of the seed: what lies together is then any images.

    Of Parquet that is read by row groups, pieces of `PIECE_ROWS` stay together, mixed within four.
    """
    num_rows = index.table.num_rows
    order = np.random.default_rng(seed).permutation(num_rows)
    offsets = index.table["offset"].fill_null(0).to_numpy()
    if num_rows and (offsets < 0).all():
        order = shuffled_runs(np.arange(num_rows), 0, seed, run=PIECE_ROWS, mix=4 * PIECE_ROWS)
    table = index.table.take(pa.array(order))
    names = pa.array(index.classes, pa.string()).take(table["label"].combine_chunks())
    table = table.set_column(table.column_names.index("label"), "label", names)
    root = root_of(config.uri)
    shown = [path.removeprefix(f"{root}/") for path in table["path"].to_pylist()]
    return table.append_column("shown", pa.array(shown, pa.string())).combine_chunks()


def cut(sizes: npt.NDArray[np.int64], shard_bytes: int | None) -> tuple[int, ...]:
    """Return where shards begin, and the end: each holds about `shard_bytes` of images.

    By default so many that a set of 128 MiB or more has at least 16.
    """
    total = int(sizes.sum())
    if shard_bytes is None:
        shard_bytes = min(max(total // SHARDS_AT_LEAST, SMALLEST_SHARD), LARGEST_SHARD)
    number = (np.cumsum(sizes) - sizes) // shard_bytes
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return (*starts.tolist(), len(sizes))
