"""`python -m benchmarks.soak [--minutes 60]`: does anything grow or fail in an hour of mixed load?

A generic and a dynamic model are served on a Ray of its own. Clients send photos of several kinds
in every form that HTTP has, broken ones, wrong requests; some are slow or leave; labels change
every ten seconds. Every kind of request has the statuses that are right for it. Every process is
weighed every ten seconds. It ends with 1 if anything came out wrong, if a replica or HAProxy grew
or ended, or if a log complains. `--samples FILE` judges what an earlier run kept, and runs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
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
from benchmarks.photos import write_large
from benchmarks.serving.sightline import Sightline, serving_sightline
from benchmarks.soak.growth import Growth, growths
from benchmarks.soak.logs import Complaints, find_complaints
from benchmarks.soak.mix import EDIT_SECONDS, Kind, build_mix, label_write
from benchmarks.soak.picture import save_picture
from benchmarks.soak.sender import Seen, Sender
from benchmarks.soak.watch import Sample, Watcher, read_samples
from benchmarks.tally import percentile_ms
from benchmarks.variants import as_kind
from benchmarks.wire import Address
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
    seen, watcher = Seen(), Watcher(server.mark, logs_of(server), SAMPLES)
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
        for number in itertools.count(1):
            if is_over():
                return
            await sender.send(label_write(server.paths["dynamic"], label, number, key))
            await asyncio.sleep(EDIT_SECONDS)

    await asyncio.gather(sender.run(per_second, is_over), weigh(), rename())
    await asyncio.to_thread(watcher.sample)
    return seen, watcher


def logs_of(server: Sightline) -> Path:
    """Return where the session of a server writes its logs."""
    return (server.folder / "session_latest" / "logs").resolve()


def scraped_at() -> Address:
    """Return where the agent of this session's only node shows metrics."""
    import ray

    (node,) = ray.nodes()
    return "127.0.0.1", node["MetricsExportPort"]


def summarise_requests(seen: Seen, report: Report) -> None:
    """Print what became of requests and fill the report."""
    rows = []
    for name, outcomes in sorted(seen.outcomes.items()):
        seconds = seen.seconds[name]
        what = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes.most_common())
        p50, p99 = statistics.median(seconds) * 1e3, percentile_ms(seconds, 0.99)
        rows.append((name, what, f"{p50:.0f}", f"{p99:.0f}"))
    print_table("requests", ("kind", "what became of them", "p50 ms", "p99 ms"), rows)
    report.figures["requests"] = sum(sum(each.values()) for each in seen.outcomes.values())
    if seen.wrong:
        report.failures["requests"] = seen.wrong
    for number, example in enumerate(seen.examples):
        report.failures[f"example {number + 1}"] = example


def summarise_growth(grown: Sequence[Growth], report: Report) -> None:
    """Print how everything changed and fill the report."""
    columns = ("what", "MiB", "first", "last", "an hour", "descriptors", "last", "an hour", "")
    table = [
        (
            each.role,
            f"{each.memory_mib:.1f}",
            f"{each.first_mib:.1f}",
            f"{each.last_mib:.1f}",
            f"{each.memory_mib_per_hour:+.1f}",
            f"{each.first_descriptors:.0f}",
            f"{each.last_descriptors:.0f}",
            f"{each.descriptors_per_hour:+.1f}",
            each.verdict,
        )
        for each in grown
    ]
    print_table("what changed after the first quarter", columns, table)
    for each in grown:
        report.figures[f"{each.role}_mib"] = each.memory_mib
        report.figures[f"{each.role}_mib_per_hour"] = each.memory_mib_per_hour
        report.figures[f"{each.role}_descriptors_per_hour"] = each.descriptors_per_hour
        if each.is_ours and not (each.is_flat and each.num_ended == 0):
            report.failures[each.role] = (
                f"{each.verdict}: {each.memory_mib_per_hour:+.1f} MiB and "
                f"{each.descriptors_per_hour:+.1f} descriptors an hour"
            )


def finish(samples: Sequence[Sample], report: Report) -> int:
    """Judge what was sampled, save what is to be kept, and say what is wrong."""
    summarise_growth(growths(samples), report)
    print(f"plot: {save_picture(samples)}")
    for name, what in report.failures.items():
        print(f"{name}: {what}")
    (OUT / "soak.json").write_text(report.line() + "\n")
    print(report.line())
    return 1 if report.failures else 0


def note_complaints(complaints: Complaints, report: Report) -> None:
    """Count what the logs complain of as failures."""
    if complaints.num_lines:
        report.failures["logs"] = complaints.num_lines
    for number, example in enumerate(complaints.examples):
        report.failures[f"log example {number + 1}"] = example


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print tables, save a plot, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--per-second", type=float, default=PER_SECOND)
    parser.add_argument("--bundle", help="URI; by default the demo's newest, else one made here")
    parser.add_argument(
        "--images", type=Path, help="a folder; by default clothing or synthetic ones"
    )
    parser.add_argument("--samples", type=Path, help="of an earlier run: judge these")
    given = parser.parse_args(arguments)
    report = Report("soak", machine=machine_facts(), versions=library_versions())
    if given.samples:
        return finish(read_samples(given.samples), report)
    bundle = find_bundle(given.bundle)
    key, line = new_key("soak", [ADMIN])
    with tempfile.TemporaryDirectory() as made, variable_set(VARIABLE, line):
        folder = Path(made)
        collect_images(given.images, folder / "photos")
        write_large(folder / "large", folder / "photos")
        bundles = {"generic": bundle, "dynamic": as_kind(bundle, "dynamic", folder / "models")}
        with serving_sightline(bundles, folder / "photos") as server:
            mix = build_mix(server.paths, folder / "photos", folder / "large", scraped_at())
            seconds = given.minutes * 60
            with bar(make_console(), "seconds of load", round(seconds)) as advance:
                seen, watcher = asyncio.run(
                    soak(
                        server,
                        mix,
                        key,
                        open_bundle(bundle).manifest.classes[0].id,
                        per_second=given.per_second,
                        seconds=seconds,
                        advance=advance,
                    )
                )
            note_complaints(find_complaints(logs_of(server)), report)
    report.figures["minutes"], report.figures["per_second"] = given.minutes, given.per_second
    summarise_requests(seen, report)
    return finish(watcher.samples, report)


if __name__ == "__main__":
    sys.exit(main())
