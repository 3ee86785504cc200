"""Images that cannot be used, each with its path and the reason, kept and counted, never silent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models.errors import DataError

SHOWN = 5


@dataclass(frozen=True)
class Broken:
    """One image that was left out."""

    path: str
    reason: str


def write_quarantine(broken: Iterable[Broken], path: str | Path) -> int:
    """Write one JSON object per line, `{"path": ..., "reason": ...}`; return how many."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in broken]
    target.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def check_share(broken: Sequence[Broken], total: int, max_share: float, where: str) -> None:
    """Raise `DataError` when more than `max_share` of the images are broken."""
    if not broken or len(broken) <= max_share * total:
        return
    examples = "".join(f"\n  {one.path}: {one.reason}" for one in broken[:SHOWN])
    more = f"\n  ... and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
    raise DataError(
        f"{len(broken):,} of {total:,} images of {where} cannot be used, "
        f"{len(broken) / total:.1%}, more than data.max_broken_share = {max_share:.1%}; "
        f"repair or remove them, or raise the limit:{examples}{more}"
    )
