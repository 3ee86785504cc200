"""Whether what was sampled over time grows, and which processes did not live through it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.soak.watch import Sample

WARM_UP_SHARE = 0.25  # of the run, in which caches fill
END_SHARE = 0.1  # of the warm part, whose median is called the first and the last
# Growth per hour that is called growth: of memory as a share and in MiB, whichever is more, and in
# descriptors.
MEMORY_SHARE, MEMORY_MIB, DESCRIPTORS = 0.05, 15.0, 10.0
THREADS = 4.0  # more at the end than at the beginning
# What has to be flat and to live. What else runs is Ray's own, and only reported.
OURS = ("replicas of ", "HAProxy")
MAX_POINTS = 300  # between which slopes are taken


@dataclass(frozen=True)
class Growth:
    """How a role changed in an hour, once it was warm."""

    role: str
    memory_mib: float  # median
    memory_mib_per_hour: float
    first_mib: float
    last_mib: float
    first_descriptors: float
    last_descriptors: float
    descriptors_per_hour: float
    more_threads: float
    num_ended: int  # processes that were there and are gone

    @property
    def is_flat(self) -> bool:
        """Whether it is within what caches and noise explain."""
        most = max(MEMORY_MIB, MEMORY_SHARE * self.memory_mib)
        # A jump moves the ends and not the median slope; a slow leak moves both.
        return (
            max(self.memory_mib_per_hour, self.last_mib - self.first_mib) <= most
            and self.descriptors_per_hour <= DESCRIPTORS
            and self.last_descriptors - self.first_descriptors <= DESCRIPTORS
            and self.more_threads <= THREADS
        )

    @property
    def is_ours(self) -> bool:
        """Whether it has to be flat."""
        return self.role.startswith(OURS[0]) or self.role == OURS[1]

    @property
    def verdict(self) -> str:
        """In words; "" is never."""
        words = [] if self.is_flat else ["grows"]
        words += [f"{self.num_ended} ended"] if self.num_ended else []
        return ", ".join(words) or "flat"


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Return how each role changed, the largest memory first."""
    moments: defaultdict[str, defaultdict[float, list[Sample]]]
    moments = defaultdict(lambda: defaultdict(list))
    for each in samples:
        moments[each.role][each.seconds].append(each)
    end = max((each.seconds for each in samples), default=0.0)
    warm_from = WARM_UP_SHARE * end
    found = [_growth(role, of_role, warm_from, end) for role, of_role in moments.items()]
    return sorted((each for each in found if each), key=lambda each: -each.memory_mib)


def _growth(
    role: str, moments: Mapping[float, list[Sample]], warm_from: float, end: float
) -> Growth | None:
    times = [seconds for seconds in sorted(moments) if seconds >= warm_from]
    if len(times) < 2:
        return None
    memory = [sum(each.memory_mib for each in moments[seconds]) for seconds in times]
    files = [float(sum(each.descriptors for each in moments[seconds])) for seconds in times]
    threads = [float(sum(each.threads for each in moments[seconds])) for seconds in times]
    first_threads, last_threads = _ends(threads)
    hours = [seconds / 3600 for seconds in times]
    seen = {each.pid for every in moments.values() for each in every}
    # By the end of the run, not of the role: a role may have vanished whole.
    at_end = {each.pid for each in moments.get(end, ())}
    first, last = _ends(memory)
    first_files, last_files = _ends(files)
    return Growth(
        role=role,
        memory_mib=statistics.median(memory),
        memory_mib_per_hour=slope(hours, memory),
        first_mib=first,
        last_mib=last,
        first_descriptors=first_files,
        last_descriptors=last_files,
        descriptors_per_hour=slope(hours, files),
        more_threads=last_threads - first_threads,
        num_ended=len(seen - at_end),
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    count = max(1, round(END_SHARE * len(values)))
    return statistics.median(values[:count]), statistics.median(values[-count:])


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the Theil-Sen estimate: the median slope of all pairs, which single spikes do not
    move (Sen, 1968). Pairs are thinned beyond 300 values.
    """
    step = max(1, len(times) // MAX_POINTS)
    points = list(zip(times[::step], values[::step], strict=True))
    slopes = [
        (b - a) / (t - s) for at, (s, a) in enumerate(points) for t, b in points[at + 1 :] if t > s
    ]
    return statistics.median(slopes) if slopes else 0.0
