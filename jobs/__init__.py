"""Floor 1: what runs and ends. Data, training and export; never imports `serve_app`."""

import os

# Read by Arrow as it is imported. Its own allocators keep much of what is freed, in each process:
# a packed set of 200,000 images took 1,308 MiB, all processes together, with glibc's 1,204 (one of
# 2,000 images 1,131 and 1,097). Packing 12,000 photos was no slower (3 turns).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
