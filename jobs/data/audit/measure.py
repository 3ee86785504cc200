"""One pass over the images of a set: what can be said of each of them by itself.

Ray tasks read, hash and decode every image and give back a few hundred bytes of numbers: so the
driver's memory grows by that per image, whatever the images weigh. A broken image has a reason and
no numbers. Which of the numbers is a finding, `traits` and `lookalikes` decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.data import places, sources
from jobs.data.audit.appearance import FINGERPRINT, TRAITS, describe
from jobs.data.chunks import Columns
from jobs.data.config import DataConfig
from jobs.data.examine import Examined, examine_image
from jobs.data.image_pass import pass_over
from models.decoders import ImageLimits
from models.errors import ImageError
from models.preprocess import PreprocessSpec

Progress = Callable[[int, int], None]
Floats = npt.NDArray[np.float32]

BYTES_PER_ROW = 800


@dataclass(frozen=True)
class Measures:
    """What was measured of N images, in the order of the table that was measured."""

    sha256: list[str]
    width: npt.NDArray[np.int32]  # (N,)
    height: npt.NDArray[np.int32]  # (N,)
    reason: list[str]  # why it cannot be used, "" if it can
    traits: dict[str, Floats]  # (N,) each
    fingerprints: Floats  # (N, FINGERPRINT), zeros where there is none


def measure(
    table: pa.Table,
    config: DataConfig,
    spec: PreprocessSpec,
    progress: Progress,
    cpu_limit: float | None = None,
) -> Measures:
    """Measure every image of a listing. Needs a running Ray."""
    look = partial(_look, spec=spec, limits=config.limits, threads=config.read_threads)
    found: dict[str, list[npt.NDArray[Any]]] = {}
    done = 0
    for columns in pass_over(table, look, config, bytes_per_row=BYTES_PER_ROW, cpu_limit=cpu_limit):
        for name, values in columns.items():
            found.setdefault(name, []).append(np.array(values))
        done += len(columns["reason"])
        progress(done, len(table))
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    return Measures(
        sha256=whole["sha256"].tolist(),
        width=whole["width"],
        height=whole["height"],
        reason=whole["reason"].tolist(),
        traits={name: whole[name] for name in TRAITS},
        fingerprints=whole["fingerprint"],
    )


def _look(
    mine: pa.Table, spec: PreprocessSpec, limits: ImageLimits, threads: int | None
) -> Columns:
    """Run in a Ray task: read, hash, decode and measure some images."""
    boxes = mine["box"].to_pylist()
    traits = np.full((len(mine), len(TRAITS)), np.nan, np.float32)
    fingerprints = np.zeros((len(mine), FINGERPRINT), np.float32)

    def look(position: int, data: bytes | Exception) -> Examined:
        box = boxes[position]
        # The same judgement as in training: an image is broken here if and only if it is there.
        examined = examine_image(data, spec, limits, box)
        if examined.reason or isinstance(data, Exception):
            return examined
        try:
            traits[position], fingerprints[position] = describe(data, limits, box, spec.grey_bits)
        except ImageError as error:  # it decodes at the model's size, but not at this one
            return examined._replace(reason=str(error))
        if box is not None:
            left, top, right, bottom = box
            return examined._replace(width=right - left, height=bottom - top)
        return examined

    results: list[Examined] = places.read_each(places.places_of(mine), look, threads, limits=limits)
    return {
        "sha256": np.array([found.sha256 for found in results], dtype=object),
        "width": np.array([found.width for found in results], np.int32),
        "height": np.array([found.height for found in results], np.int32),
        "reason": np.array([found.reason for found in results], dtype=object),
        "fingerprint": fingerprints,
        **{name: traits[:, column] for column, name in enumerate(TRAITS)},
    }


def fill_in(table: pa.Table, measures: Measures) -> pa.Table:
    """Return the listing with the columns that were measured."""
    columns: dict[str, Any] = {
        "sha256": measures.sha256,
        "width": measures.width,
        "height": measures.height,
        "reason": measures.reason,
    }
    for field in sources.EXAMINED:
        place = table.column_names.index(field.name)
        table = table.set_column(place, field, pa.array(columns[field.name], field.type))
    return table
