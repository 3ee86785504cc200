"""Packing for the tests: with small shards, and quietly."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.data.config import DataConfig
from jobs.data.index import Index, build_index
from jobs.data.pack_plan import PackOptions
from jobs.data.packing import Packed, run_packing
from models.preprocess import PreprocessSpec

SPEC = PreprocessSpec(height=16, width=16)
SHARD = 64 << 10


def pack(origin: Path | str, dest: Path | str, **settings: Any) -> Packed:
    """Pack with small shards."""
    packing = {"shard_bytes": SHARD, "uri": str(dest)}
    packing |= {
        name: settings.pop(name)
        for name in ("max_side", "seed", "overwrite", "shard_bytes")
        if name in settings
    }
    config = DataConfig(uri=str(origin), **settings)
    return run_packing(config, PackOptions(**packing), Console(file=io.StringIO()))  # type: ignore[arg-type]


def packed_index(dest: Path | str) -> Index:
    return build_index(DataConfig(source="packed", uri=str(dest)), SPEC)


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
