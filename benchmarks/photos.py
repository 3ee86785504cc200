"""Photos to measure with: a folder of them, solar cells, and one of 12 megapixels."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np

from jobs.demo_data import write_elpv
from models.decoders import IMAGE_SUFFIXES
from models.errors import ConfigError

NUM_CELLS = 200
LARGE = (3000, 4000)  # height and width of what a phone takes
QUALITY = 80


def collect_cells(target: Path) -> bool:
    """Write solar cells of the package elpv-dataset to a flat folder; False where it is missing."""
    everything = target.with_name(f"{target.name}-all")
    try:
        write_elpv(str(everything))
    except ConfigError:
        return False
    found = sorted(everything.rglob("*.png"))
    target.mkdir(parents=True)
    for number, path in enumerate(found[:: max(1, len(found) // NUM_CELLS)][:NUM_CELLS]):
        shutil.copy(path, target / f"{number:03}.png")
    shutil.rmtree(everything)
    return True


def write_large(target: Path, photos: Path) -> Path:
    """Write one photo of 12 megapixels: a mosaic of those in a folder, each scaled to detail that a
    sharp lens shows, with the grain of a sensor.
    """
    from PIL import Image

    height, width = LARGE
    files = [path for path in sorted(photos.iterdir()) if path.suffix in IMAGE_SUFFIXES]
    canvas = Image.new("RGB", (width, height))
    tile = 1000
    places = [(x, y) for y in range(0, height, tile) for x in range(0, width, tile)]
    for number, place in enumerate(places):
        with Image.open(files[number % len(files)]) as photo:
            canvas.paste(photo.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS), place)
    chance = np.random.default_rng(0)
    grain = chance.normal(0, 3, (height, width, 1))
    pixels = np.clip(np.asarray(canvas) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "large.jpg"
    path.write_bytes(buffer.getvalue())
    return path
