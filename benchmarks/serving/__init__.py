"""Sightline against the machine and against its peers: `python -m benchmarks.serving`."""
