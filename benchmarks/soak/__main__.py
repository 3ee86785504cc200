"""`python -m benchmarks.soak [--minutes 60]`: does anything grow or fail in an hour of mixed load?

A generic and a dynamic model are served on a Ray of its own. Clients send photos of several kinds
in every protocol, broken ones, wrong requests; some are slow or leave; labels change every ten
seconds. Every kind of request has the statuses that are right for it. Every process is weighed
every ten seconds. It ends with 1 if anything came out wrong, or if a replica or HAProxy grew.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.common import (
    OUT,
    Report,
    library_versions,
    machine_facts,
    print_table,
    variable_set,
)
from benchmarks.fixtures import collect_images, find_bundle
from benchmarks.generator import percentile_ms
from benchmarks.photos import write_large
from benchmarks.serving.sightline import Sightline, serving_sightline
from benchmarks.soak.mix import EDIT_SECONDS, Kind, build_mix, rename_label
from benchmarks.soak.picture import save_picture
from benchmarks.soak.sender import Seen, Sender
from benchmarks.soak.watch import OURS, Growth, Watcher, growths
from benchmarks.variants import as_kind
from jobs.console import Advance, bar, make_console
from models.bundle import open_bundle
from serve_app.keys import ADMIN, VARIABLE, new_key

SAMPLES = OUT / "soak.samples.jsonl"
SAMPLE_SECONDS = 10
PER_SECOND = 12.0


async def soak(
    server: Sightline,
    mix: Sequence[Kind],
    key: str,
    label: str,
    *,
    per_second: float,
    seconds: float,
    advance: Advance,
) -> tuple[Seen, Watcher]:
    """Send the mix for so long, change labels meanwhile, and weigh every process."""
    parts = urlsplit(server.url)
    seen, watcher = Seen(), Watcher(server.mark, SAMPLES)
    sender = Sender((parts.hostname or "127.0.0.1", parts.port or 80), mix, seen)
    end = time.monotonic() + seconds

    def is_over() -> bool:
        return time.monotonic() >= end

    async def weigh() -> None:
        while not is_over():
            await asyncio.to_thread(watcher.sample)
            await asyncio.sleep(SAMPLE_SECONDS)
            advance(SAMPLE_SECONDS)

    async def rename() -> None:
        name, number = label, 0
        while not is_over():
            number += 1
            renamed = f"{label} {number}"
            request = rename_label(server.paths["dynamic"], name, renamed, key)
            await sender.send(Kind("write of labels", 0, (request,), frozenset({"200", "201"})))
            name = renamed
            await asyncio.sleep(EDIT_SECONDS)

    await asyncio.gather(sender.run(per_second, is_over), weigh(), rename())
    return seen, watcher


def summarise(seen: Seen, grown: Sequence[Growth], report: Report) -> None:
    """Print what happened and fill the report."""
    rows = []
    for name, outcomes in sorted(seen.outcomes.items()):
        seconds = seen.seconds[name]
        what = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes.most_common())
        p50, p99 = statistics.median(seconds) * 1e3, percentile_ms(seconds, 0.99)
        rows.append((name, what, f"{p50:.0f}", f"{p99:.0f}"))
    print_table("requests", ("kind", "what became of them", "p50 ms", "p99 ms"), rows)
    columns = ("processes", "MiB", "MiB an hour", "descriptors", "an hour", "")
    table = [
        (
            each.role,
            f"{each.memory_mib:.1f}",
            f"{each.memory_mib_per_hour:+.1f}",
            f"{each.descriptors:.0f}",
            f"{each.descriptors_per_hour:+.1f}",
            "flat" if each.is_flat else "grows",
        )
        for each in grown
    ]
    print_table("growth after the first quarter", columns, table)
    report.figures["requests"] = sum(sum(each.values()) for each in seen.outcomes.values())
    for each in grown:
        report.figures[f"{each.role}_mib"] = each.memory_mib
        report.figures[f"{each.role}_mib_per_hour"] = each.memory_mib_per_hour
        report.figures[f"{each.role}_descriptors_per_hour"] = each.descriptors_per_hour
        if each.role in OURS and not each.is_flat:
            report.failures[each.role] = (
                f"grew by {each.memory_mib_per_hour:+.1f} MiB and "
                f"{each.descriptors_per_hour:+.1f} descriptors an hour"
            )
    if seen.wrong:
        report.failures["requests"] = seen.wrong
    for number, example in enumerate(seen.examples):
        report.failures[f"example {number + 1}"] = example


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print tables, save a plot, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--per-second", type=float, default=PER_SECOND)
    parser.add_argument("--bundle", help="URI; by default the demo's newest, else one made here")
    parser.add_argument(
        "--images", type=Path, help="a folder; by default clothing or synthetic ones"
    )
    given = parser.parse_args(arguments)
    report = Report("soak", machine=machine_facts(), versions=library_versions())
    bundle = find_bundle(given.bundle)
    key, line = new_key("soak", [ADMIN])
    with tempfile.TemporaryDirectory() as made, variable_set(VARIABLE, line):
        folder = Path(made)
        collect_images(given.images, folder / "photos")
        write_large(folder / "large", folder / "photos")
        bundles = {"generic": bundle, "dynamic": as_kind(bundle, "dynamic", folder / "models")}
        with serving_sightline(bundles, folder / "photos") as server:
            mix = build_mix(server.paths, folder / "photos", folder / "large")
            seconds = given.minutes * 60
            with bar(make_console(), "seconds of load", round(seconds)) as advance:
                seen, watcher = asyncio.run(
                    soak(
                        server,
                        mix,
                        key,
                        open_bundle(bundle).manifest.classes[0].name,
                        per_second=given.per_second,
                        seconds=seconds,
                        advance=advance,
                    )
                )
    report.figures["minutes"], report.figures["per_second"] = given.minutes, given.per_second
    summarise(seen, growths(watcher.samples), report)
    print(f"plot: {save_picture(watcher.samples)}")
    for name, what in report.failures.items():
        print(f"{name}: {what}")
    (OUT / "soak.json").write_text(report.line() + "\n")
    print(report.line())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
