"""Tests of `serve_app`: the HTTP calls on a real tiny model, then the same through Serve."""
