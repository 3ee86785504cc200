"""The images of the demo: solar cells from the package `elpv-dataset`, as a labelled folder.

2,624 electroluminescence photos of 300 x 300 pixels, grey (Deitsch et al., 2019; CC BY-NC-SA:
installed, never copied into this project). Experts gave each cell a probability of being defective;
above 0.5 counts as defective.
"""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import PurePosixPath

from models.errors import ConfigError, NotFoundError
from models.storage import Entry, open_store

DEFECTIVE_ABOVE = 0.5


def write_elpv(uri: str) -> dict[str, int]:
    """Write the photos to `<uri>/good/` and `<uri>/defective/`, byte for byte; returns the counts.

    What is there already with the same size is left alone. Raises `ConfigError` without the
    package.
    """
    try:
        data = files("elpv_dataset") / "data"
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the demo needs the package elpv-dataset: pip install 'sightline[demo]'"
        ) from error
    store = open_store(uri)
    written = {entry.key: entry.size for entry in _listed(uri)}
    counts = {"good": 0, "defective": 0}
    with (data / "labels.csv").open() as file:
        for path, probability, *_ in csv.reader(file, delimiter=" ", skipinitialspace=True):
            label = "defective" if float(probability) > DEFECTIVE_ABOVE else "good"
            photo = data.joinpath(*PurePosixPath(path).parts).read_bytes()
            key = f"{label}/{PurePosixPath(path).name}"
            if written.get(key) != len(photo):
                store.write(key, photo)
            counts[label] += 1
    return counts


def _listed(uri: str) -> list[Entry]:
    try:
        return list(open_store(uri).list())
    except NotFoundError:
        return []
