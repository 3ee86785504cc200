"""`python -m benchmarks.peers [name ...]`: each peer in each mode, one after the other.

Not the comparison itself, which measures in turns and belongs to `benchmarks.serving`: this starts
every peer, proves its answers, and says how fast it is at all, or why it is not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common import print_table
from benchmarks.fixtures import collect_images, find_bundle
from benchmarks.load import Load, Rate, generator_name
from benchmarks.peers.peer import Peer, serving_peer
from benchmarks.peers.reference import PeerFailure, Reference, open_reference
from benchmarks.peers.scoring import MODES
from benchmarks.peers.table import PEERS

CONNECTIONS = (16, 32)
SHARES = (0.5, 0.8, 3.0)  # of its own capacity
# What stands in the table of versions beside the peer itself.
LIBRARIES = ("uvicorn", "starlette", "openvino", "torch", "numpy", "uvloop")


@dataclass(frozen=True)
class Outcome:
    """What one peer in one mode gave, or the reason why it gave nothing."""

    peer: str
    mode: str
    reason: str = ""
    loads: dict[int, Load] | None = None  # by connections
    rates: dict[float, Rate] | None = None  # by share of the capacity
    start_up_seconds: float = 0.0
    memory_mib: float = 0.0
    versions: dict[str, str] | None = None

    @property
    def capacity(self) -> float:
        """Images per second, the best of the closed loops; 0 if it was not measured."""
        return max((load.per_second for load in (self.loads or {}).values()), default=0.0)


def measure_peers(
    names: Sequence[str],
    modes: Sequence[str],
    bundle: str,
    images: Path,
    *,
    seconds: float,
    shares: Sequence[float] = SHARES,
) -> list[Outcome]:
    """Measure each peer in each mode, alone. A peer that fails is in the list with its reason."""
    reference = open_reference(bundle, images)
    outcomes = []
    for name in names:
        for mode in modes:
            outcomes.append(
                measure_peer(name, mode, bundle, images, reference, seconds=seconds, shares=shares)
            )
            print(f"{name} {mode}: {' '.join(_row(outcomes[-1])[1:])}", file=sys.stderr)
    return outcomes


def measure_peer(
    name: str,
    mode: str,
    bundle: str,
    images: Path,
    reference: Reference,
    *,
    seconds: float,
    shares: Sequence[float],
) -> Outcome:
    """Measure one peer in one mode."""
    try:
        with serving_peer(name, mode, bundle, images, reference) as peer:
            return _measured(peer, seconds, shares)
    except PeerFailure as error:
        return Outcome(name, mode, reason=str(error))


def _measured(peer: Peer, seconds: float, shares: Sequence[float]) -> Outcome:
    loads = {count: peer.load(count, seconds) for count in CONNECTIONS}
    memory = peer.memory_mib()
    capacity = max(load.per_second for load in loads.values())
    rates = {share: peer.rate(share * capacity, seconds) for share in shares if capacity}
    versions = {
        name: peer.versions[name]
        for name in (peer.entry.package, *LIBRARIES)
        if name in peer.versions
    }
    return Outcome(peer.name, peer.mode, "", loads, rates, peer.start_up_seconds, memory, versions)


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.loads is None or outcome.rates is None:
        return (f"{outcome.peer} {outcome.mode}", "-", *[""] * 7)
    sixteen = outcome.loads[CONNECTIONS[0]]
    tail = [f"{rate.p50_ms:.0f}/{rate.p99_ms:.0f}" for rate in outcome.rates.values()]
    return (
        f"{outcome.peer} {outcome.mode}",
        *(f"{load.per_second:.0f}" for load in outcome.loads.values()),
        f"{sixteen.p50_ms:.0f}/{sixteen.p99_ms:.0f}",
        *tail,
        f"{outcome.start_up_seconds:.1f}",
        f"{outcome.memory_mib:.0f}",
    )


def main() -> int:
    """Measure, print a table and the reasons, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--bundle")
    parser.add_argument("--images", type=Path)
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        help="of each run of load; at least 10 where batches take seconds",
    )
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES, help="of the capacity")
    options = parser.parse_args()
    bundle = find_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        collect_images(options.images, images)
        names = options.names or list(PEERS)
        outcomes = measure_peers(
            names, options.modes, bundle, images, seconds=options.seconds, shares=options.shares
        )
    columns = [
        *(
            "peer",
            *(f"images/s, {count}" for count in CONNECTIONS),
            f"p50/p99 ms, {CONNECTIONS[0]}",
        ),
        *(f"p50/p99 ms at {share:.0%}" for share in options.shares),
        *("start s", "MiB"),
    ]
    print_table(f"peers ({generator_name()})", columns, [_row(each) for each in outcomes])
    for outcome in outcomes:
        if outcome.reason:
            print(f"{outcome.peer} {outcome.mode} is not measured: {outcome.reason}")
    print(json.dumps([asdict(each) for each in outcomes]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
