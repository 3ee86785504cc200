"""No loader at all: processes and threads that read files and decode them, and drop the images.

One process of a layout: `python -m benchmarks.ingest.loaders.raw FOLDER THREADS [CORE]`. It says
that it is ready, and then decodes for as many seconds as each line on its standard input says.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

from benchmarks.ingest.loaders.transforms import prepared
from benchmarks.ingest.sets import find_photos

WARM_UP_IMAGES = 100


def decode_for(seconds: float, paths: list[Path], num_threads: int) -> float:
    """Read and decode files in turn on threads; return images per second."""
    counts = [0] * num_threads
    started = time.perf_counter()
    end = started + seconds

    def work(thread: int) -> None:
        position = thread
        while time.perf_counter() < end:
            prepared(paths[position % len(paths)].read_bytes())
            position += num_threads
            counts[thread] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def main() -> int:
    """Be one process of a layout."""
    folder, num_threads, *core = sys.argv[1:]
    if core:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(core[0])]})
    paths = find_photos(Path(folder))
    random.Random(os.getpid()).shuffle(paths)
    for path in paths[:WARM_UP_IMAGES]:
        prepared(path.read_bytes())
    print("ready", flush=True)
    for line in sys.stdin:
        print(decode_for(float(line), paths, int(num_threads)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
