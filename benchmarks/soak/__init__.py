"""An hour of everything that clients do, right and wrong: `python -m benchmarks.soak`."""
