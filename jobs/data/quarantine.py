"""Images that cannot be used, each with its path and the reason, kept and counted, never silent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from models.errors import DataError
from models.storage import open_store

SHOWN = 5


@dataclass(frozen=True)
class Broken:
    """One image that was left out."""

    path: str
    reason: str


def keep_quarantine(broken: Iterable[Broken], runs: str, run_id: str, name: str) -> str:
    """Write one JSON object per line, `{"path": ..., "reason": ...}`, to the folder of a run;
    return where.
    """
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in broken]
    store = open_store(runs).child(run_id)
    store.write(name, "".join(lines).encode())
    return f"{store.uri}/{name}"


def check_share(
    broken: Sequence[Broken], total: int, max_share: float, where: str, num_lost: int = 0
) -> None:
    """Raise `DataError` when more than `max_share` of the images are broken. Beside the `total`
    there are `num_lost` that were lost with what is broken.
    """
    count, total = len(broken) + num_lost, total + num_lost
    if not broken or count <= max_share * total:
        return
    examples = "".join(f"\n  {one.path}: {one.reason}" for one in broken[:SHOWN])
    more = f"\n  ... and {len(broken) - SHOWN:,} more" if len(broken) > SHOWN else ""
    lost = f" ({num_lost:,} of them lost in files that end too early)" if num_lost else ""
    raise DataError(
        f"{count:,} of {total:,} images of {where} cannot be used{lost}, "
        f"{count / total:.1%}, more than data.max_broken_share = {max_share:.1%}; "
        f"repair or remove them, or raise the limit:{examples}{more}"
    )
