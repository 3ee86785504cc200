"""Benchmarks: `python -m benchmarks.<name> [--quick]`, each ending with one JSON line."""
