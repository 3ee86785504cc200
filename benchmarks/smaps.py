"""The memory of one process as the kernel adds it up in `smaps_rollup`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """In MiB. Proportional: a page shared by n processes counts 1/n."""

    rss_mib: float
    pss_mib: float  # proportional, of everything
    anonymous_mib: float  # proportional, of what processes have written: heaps and stacks
    shared_mib: float  # proportional, of shared memory


def memory_of(pid: int) -> Memory:
    """Return the memory of a process. Raises `OSError` if it has ended or is another user's."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024 / MIB
    if "Pss_Anon" not in sizes:
        raise ProcessLookupError(f"process {pid} has ended or is the kernel's: it has no memory")
    return Memory(sizes["Rss"], sizes["Pss"], sizes["Pss_Anon"], sizes["Pss_Shmem"])
