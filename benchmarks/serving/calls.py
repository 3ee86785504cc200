"""How images travel to Sightline: one request as bytes for each call that is measured."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.peers.forms import BOUNDARY, media_type
from benchmarks.wire import Request

BATCH = 16
Build = Callable[[str, Path], list[Request]]  # path of the model, folder of images


def raw(model: str, images: Path) -> list[Request]:
    """Return a request for each image file, the file as its body."""
    return [
        Request(f"{model}/classify", file.read_bytes(), (("Content-Type", media_type(file)),))
        for file in _files(images)
    ]


def embed(model: str, images: Path) -> list[Request]:
    """Return a request for the vector of each image, answered in bytes."""
    headers = (("Accept", "application/octet-stream"),)
    return [
        Request(f"{model}/embed", file.read_bytes(), (("Content-Type", media_type(file)), *headers))
        for file in _files(images)
    ]


def oip_binary(model: str, images: Path) -> list[Request]:
    """Return a request of the Open Inference Protocol with its binary extension for each image."""
    return [_infer(model, [file]) for file in _files(images)]


def oip_batches(model: str, images: Path) -> list[Request]:
    """Return requests of 16 images in one binary tensor."""
    return [_infer(model, files) for files in _batches(images)]


def multipart_batches(model: str, images: Path) -> list[Request]:
    """Return uploads of 16 files."""
    return [multipart_of(model, files) for files in _batches(images)]


CALLS: Mapping[str, Build] = {
    "raw body": raw,
    "OIP binary": oip_binary,
    "16 images, multipart": multipart_batches,
    "16 images, OIP binary": oip_batches,
    "vectors": embed,
}
IN_BATCHES = frozenset(name for name in CALLS if name.startswith(f"{BATCH} images"))


def _infer(model: str, files: Sequence[Path]) -> Request:
    elements = b"".join(
        struct.pack("<I", len(data)) + data for data in (file.read_bytes() for file in files)
    )
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": [len(files)],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(elements)},
                }
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = (
        ("Content-Type", "application/octet-stream"),
        ("Inference-Header-Content-Length", str(len(head))),
    )
    return Request(f"{model}/infer", head + elements, headers)


def multipart_of(model: str, files: Sequence[Path]) -> Request:
    """Return one upload of several files."""
    parts = [
        f"--{BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="images"; filename="{file.name}"\r\n'
        f"Content-Type: {media_type(file)}\r\n\r\n".encode()
        + file.read_bytes()
        + b"\r\n"
        for file in files
    ]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    headers = (("Content-Type", f"multipart/form-data; boundary={BOUNDARY}"),)
    return Request(f"{model}/classify", body, headers)


def _files(images: Path) -> list[Path]:
    return sorted(images.iterdir())


def _batches(images: Path) -> list[list[Path]]:
    """Return groups of exactly 16, each image in one of them; the last begins anew at the front."""
    files = _files(images)
    return [
        [files[(start + offset) % len(files)] for offset in range(BATCH)]
        for start in range(0, len(files), BATCH)
    ]
