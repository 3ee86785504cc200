"""Scoring many images against a served model over HTTP, into one table."""
