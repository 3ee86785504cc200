"""Packing, scoring and reading, killed at random moments and compared with being left alone."""
