"""Small image files for the tests, sound ones and broken ones in every way users have them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from models.storage import Store


def jpeg(number: int, size: int = 24) -> bytes:
    """Return a JPEG whose content depends on the number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def truncated_jpeg() -> bytes:
    """Return a JPEG cut off in the middle of its picture."""
    whole = jpeg(4711, size=64)
    return whole[: len(whole) // 2]


def huge_png(side: int = 20_000) -> bytes:
    """Return a PNG of side x side black pixels, 1 bit each: 50 kB that decode to gigabytes."""
    row = b"\0" * (1 + (side + 7) // 8)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _png_chunk(name, data)
        for name, data in (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(row * side, 9)),
            (b"IEND", b""),
        )
    )


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


BROKEN: dict[str, bytes] = {
    "text.jpg": b"this is no image\n",
    "empty.jpg": b"",
    "truncated.jpg": truncated_jpeg(),
}


def write(root: Path | Store, files: dict[str, bytes]) -> None:
    """Write files below a folder or a bucket, making folders on the way."""
    for key, data in files.items():
        if isinstance(root, Store):
            root.write(key, data)
        else:
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def class_files(counts: dict[str, int], start: int = 0) -> dict[str, bytes]:
    """Return `{"<class>/<n>.jpg": bytes}` with different images throughout."""
    files: dict[str, bytes] = {}
    for name, count in counts.items():
        for number in range(count):
            files[f"{name}/{number:04}.jpg"] = jpeg(start + len(files))
    return files
