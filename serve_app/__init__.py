"""What answers: the Ray Serve applications. Depends on `models` only, never on `jobs`."""

import time

IMPORTED_SINCE = time.perf_counter()  # seconds; a replica tells how long its imports took
