"""Tests, one folder per package; itself one, so that `tests/cluster` cannot shadow `cluster`."""
