"""Small sound image files of every form that the decoders read, for tests that damage them.

Pillow writes most of them; what it cannot write (interlaced and 16-bit colour PNG, tiled and
big-endian TIFF, RLE and 16-bit BMP) is put together here by the formats' own rules.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WIDTH, HEIGHT = 24, 20
EXIF_ORIENTATION = 0x0112
PNG_MARK = b"\x89PNG\r\n\x1a\n"
# PNG 1.2, 8.2: where each pass of an interlaced picture begins, and its steps.
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
# Tags of TIFF 6.0.
SIZE_TAGS = {"width": 256, "height": 257}
BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS = 258, 259, 262, 273, 277, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
SHORT, LONG = 3, 4

Pixels = npt.NDArray[np.uint8]


def seed_files() -> dict[str, bytes]:
    """Return the files by a name that says what each one is."""
    return {**_jpegs(), **_pngs(), **_webps(), **_tiffs(), **_gifs(), **_bmps()}


def picture(channels: int = 3) -> Pixels:
    """Return smooth noise, (HEIGHT, WIDTH, channels)."""
    coarse = np.random.default_rng(1).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    return coarse.repeat(HEIGHT // 5, axis=0).repeat(WIDTH // 6, axis=1)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_file(header: tuple[int, ...], *chunks: bytes) -> bytes:
    """Return a PNG of the seven fields of its header and the chunks after it."""
    return b"".join(
        (PNG_MARK, png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), *chunks)
    ) + png_chunk(b"IEND", b"")


def tiff_file(
    tags: dict[int, tuple[int, list[int]]], data: bytes, *, order: str = "<", offsets: int = OFFSETS
) -> bytes:
    """Return a TIFF of one picture: tag -> (type, values). `offsets` is the tag that gets the place
    of `data`.
    """
    entries = {**tags, offsets: (LONG, [0])}
    values_at = 8 + 2 + 12 * len(entries) + 4
    sizes = {SHORT: "H", LONG: "L"}
    packed = {
        tag: struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
        for tag, (kind, values) in entries.items()
    }
    data_at = values_at + sum(len(value) for value in packed.values() if len(value) > 4)
    packed[offsets] = struct.pack(f"{order}L", data_at)
    out = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}LH", 8, len(entries))
    outside = b""
    for tag in sorted(entries):
        kind, values = entries[tag]
        out += struct.pack(f"{order}HHL", tag, kind, len(values))
        if len(packed[tag]) > 4:
            out += struct.pack(f"{order}L", values_at + len(outside))
            outside += packed[tag]
        else:
            out += packed[tag].ljust(4, b"\x00")
    return out + bytes(4) + outside + data


def bmp_file(size: tuple[int, int], bits: int, compression: int, data: bytes) -> bytes:
    """Return a BMP with a palette where its pixels need one."""
    palette = b"".join(bytes([n, n, 255 - n, 0]) for n in range(256))[
        : 4 << bits if bits <= 8 else 0
    ]
    start = 14 + 40 + len(palette)
    head = struct.pack("<IHHI", start + len(data), 0, 0, start)
    info = struct.pack(
        "<IiiHHIIiiII", 40, *size, 1, bits, compression, len(data), 0, 0, len(palette) // 4, 0
    )
    return b"BM" + head + info + palette + data


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _image(mode: str = "RGB") -> Image.Image:
    if mode == "I;16":
        return Image.fromarray((picture(1)[..., 0].astype(np.uint16) << 8) + 77)
    if mode in ("RGBA", "CMYK"):
        return Image.frombytes(mode, (WIDTH, HEIGHT), picture(4).tobytes())
    return Image.fromarray(picture()).convert(mode)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return exif.tobytes()


def _jpegs() -> dict[str, bytes]:
    rgb = _image()
    return {
        "jpeg baseline": _save(rgb, "JPEG", subsampling=0),
        "jpeg subsampled": _save(rgb, "JPEG", subsampling=2, comment="a comment"),
        "jpeg progressive": _save(rgb, "JPEG", progressive=True),
        "jpeg grey": _save(_image("L"), "JPEG"),
        "jpeg cmyk": _save(_image("CMYK"), "JPEG"),
        "jpeg cmyk progressive": _save(_image("CMYK"), "JPEG", progressive=True),
        "jpeg turned": _save(rgb, "JPEG", exif=_exif()),
        "jpeg restarts": _save(rgb, "JPEG", restart_marker_blocks=1),
        "jpeg profile": _save(rgb, "JPEG", icc_profile=bytes(range(200))),
        "mpo": _save(rgb, "MPO", save_all=True, append_images=[_image("L").convert("RGB")]),
    }


def _pngs() -> dict[str, bytes]:
    text = PngInfo()
    text.add_text("Title", "a picture")
    text.add_text("Long", "words " * 50, zip=True)
    text.add_itxt("Author", "ann", "en", zip=True)
    files = {
        f"png {mode}": _save(_image(mode), "PNG")
        for mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")
    }
    rows = picture(3)
    deep = np.repeat(rows, 2, axis=2).reshape(HEIGHT, -1)
    lines = b"".join(b"\x00" + row.tobytes() for row in deep)
    passes = b"".join(
        b"\x00" + row.tobytes()
        for top, left, down, right in ADAM7
        for row in rows[top::down, left::right].reshape(len(rows[top::down]), -1)
    )
    rgb = files["png RGB"]
    return {
        **files,
        "png palette, one colour clear": _save(_image("P"), "PNG", transparency=3),
        "png words": _save(_image(), "PNG", pnginfo=text, icc_profile=bytes(300), exif=_exif()),
        "png 16-bit colour": png_file(
            (WIDTH, HEIGHT, 16, 2, 0, 0, 0), png_chunk(b"IDAT", zlib.compress(lines))
        ),
        "png interlaced": png_file(
            (WIDTH, HEIGHT, 8, 2, 0, 0, 1), png_chunk(b"IDAT", zlib.compress(passes))
        ),
        "png unknown chunk": rgb[:33] + png_chunk(b"teST", b"x" * 20) + rgb[33:],
        "png chunk of a wrong sum": rgb[:33] + png_chunk(b"teST", b"x" * 20)[:-1] + b"?" + rgb[33:],
    }


def _webps() -> dict[str, bytes]:
    more = [_image("L").convert("RGB")]
    return {
        "webp lossy": _save(_image(), "WEBP", quality=60),
        "webp lossless": _save(_image(), "WEBP", lossless=True),
        "webp alpha": _save(_image("RGBA"), "WEBP", exif=_exif()),
        "webp animated": _save(_image(), "WEBP", save_all=True, append_images=more),
    }


def _tiffs() -> dict[str, bytes]:
    rgb = _image()
    compressed = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")
    files = {f"tiff {name}": _save(rgb, "TIFF", compression=name) for name in compressed}
    modes = ("1", "L", "LA", "RGBA", "P", "CMYK", "I;16", "I", "F")
    files |= {f"tiff {mode}": _save(_image(mode), "TIFF") for mode in modes}
    for fax in ("group3", "group4"):
        files[f"tiff {fax}"] = _save(_image("1"), "TIFF", compression=fax)
    grey = picture(1)[..., 0]
    tags = {
        SIZE_TAGS["width"]: (SHORT, [WIDTH]),
        SIZE_TAGS["height"]: (SHORT, [HEIGHT]),
        BITS: (SHORT, [8]),
        COMPRESSION: (SHORT, [1]),
        PHOTOMETRIC: (SHORT, [1]),
        SAMPLES: (SHORT, [1]),
    }
    strips = {**tags, ROWS: (SHORT, [HEIGHT]), COUNTS: (LONG, [grey.size])}
    tile = {TILE_WIDTH: (SHORT, [32]), TILE_HEIGHT: (SHORT, [32]), TILE_COUNTS: (LONG, [1024])}
    return {
        **files,
        "tiff frames": _save(rgb, "TIFF", save_all=True, append_images=[_image("L")]),
        "tiff turned": _save(rgb, "TIFF", tiffinfo={EXIF_ORIENTATION: 8}),
        "tiff big-endian": tiff_file(strips, grey.tobytes(), order=">"),
        "tiff tiled": tiff_file({**tags, **tile}, bytes(1024), offsets=TILE_OFFSETS),
    }


def _gifs() -> dict[str, bytes]:
    palette = _image("P")
    return {
        "gif": _save(palette, "GIF", interlace=0),
        "gif interlaced": _save(palette, "GIF", interlace=1, comment=b"a comment"),
        "gif animated": _save(
            palette, "GIF", save_all=True, append_images=[_image("L")], duration=9, transparency=2
        ),
    }


def _bmps() -> dict[str, bytes]:
    grey = picture(1)[..., 0]
    runs = b"".join(
        b"".join(bytes([1, value]) for value in row) + b"\x00\x00" for row in grey.tolist()
    )
    return {
        **{f"bmp {mode}": _save(_image(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")},
        "bmp rle8": bmp_file((WIDTH, HEIGHT), 8, 1, runs + b"\x00\x01"),
        "bmp rle4": bmp_file((WIDTH, HEIGHT), 4, 2, b"\x18\x12\x00\x00" * HEIGHT + b"\x00\x01"),
        "bmp 4-bit": bmp_file((WIDTH, HEIGHT), 4, 0, bytes(range(12)) * HEIGHT),
        "bmp 16-bit": bmp_file((WIDTH, HEIGHT), 16, 0, bytes(range(48)) * HEIGHT),
    }
