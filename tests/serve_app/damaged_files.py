"""Image files damaged by chance: by general means (bits, spans, splices, numbers that look like
lengths) and by means that know the format (chunks dropped, doubled, put in another order; sizes
that lie; checksums made right again, so that the damage is not refused at once).
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

from tests.serve_app.seed_files import PNG_MARK, png_chunk

MAX_BYTES = 60_000  # of a damaged file, so that spans that are doubled do not grow for ever
LENGTHS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0xFFFFFFFF,
)
SIZES = (0, 1, 7, 15, 64, 2000, 4000, 5000, 65_535, 100_000, 1 << 24, (1 << 31) - 1, 1 << 31)


def damaged_file(chance: random.Random, files: Sequence[bytes]) -> bytes:
    """Return one of the files, nearly always damaged."""
    data = chance.choice(files)
    if chance.random() < 0.02:
        return data
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        data = _damaged(chance, data, files)[:MAX_BYTES]
    return _right_sums(data) if chance.random() < 0.7 else data


def _damaged(chance: random.Random, data: bytes, files: Sequence[bytes]) -> bytes:
    how = chance.random()
    if how < 0.45:
        return _damage_parts(chance, data)
    if how < 0.55:
        return _splice(chance, data, chance.choice(files))
    return damage(chance, data)


def damage(chance: random.Random, data: bytes) -> bytes:
    """Damage bytes of whatever meaning in one way."""
    return chance.choice(_WAYS)(chance, bytearray(data) or bytearray(1))


def _flip(chance: random.Random, data: bytearray) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _set_byte(chance: random.Random, data: bytearray) -> bytes:
    data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
    return bytes(data)


def _cut(chance: random.Random, data: bytearray) -> bytes:
    return bytes(data[: chance.randrange(len(data) + 1)])


def _drop(chance: random.Random, data: bytearray) -> bytes:
    start = chance.randrange(len(data))
    return bytes(data[:start] + data[start + chance.choice((1, 2, 4, 16, 100)) :])


def _insert(chance: random.Random, data: bytearray) -> bytes:
    at = chance.randrange(len(data) + 1)
    filling = chance.choice((b"\x00", b"\xff", chance.randbytes(1)))
    more = chance.choice((filling * chance.choice((1, 4, 1000)), chance.randbytes(16)))
    return bytes(data[:at]) + more + bytes(data[at:])


def _double(chance: random.Random, data: bytearray) -> bytes:
    start = chance.randrange(len(data))
    end = start + chance.choice((1, 4, 12, 64, 500))
    return (
        bytes(data[:end]) + bytes(data[start:end]) * chance.choice((1, 2, 50)) + bytes(data[end:])
    )


def _number(chance: random.Random, data: bytearray) -> bytes:
    kind = chance.choice((">H", "<H", ">I", "<I"))
    size = struct.calcsize(kind)
    if len(data) >= size:
        value = chance.choice(LENGTHS) & ((1 << 8 * size) - 1)
        struct.pack_into(kind, data, chance.randrange(len(data) - size + 1), value)
    return bytes(data)


_WAYS: tuple[Callable[[random.Random, bytearray], bytes], ...] = (
    _flip,
    _flip,
    _set_byte,
    _cut,
    _drop,
    _insert,
    _double,
    _number,
    _number,
)


def _splice(chance: random.Random, one: bytes, other: bytes) -> bytes:
    return one[: chance.randrange(len(one) + 1)] + other[chance.randrange(len(other) + 1) :]


def _damage_parts(chance: random.Random, data: bytes) -> bytes:
    """Damage a file by the rules of its format: sizes that lie, parts dropped, doubled, moved."""
    if chance.random() < 0.4:
        return _lie(chance, data)
    parts = _split(data)
    if len(parts) < 3:
        return damage(chance, data)
    at = chance.randrange(1, len(parts))
    way = chance.randrange(5)
    if way == 0:
        del parts[at]
    elif way == 1:
        parts[at:at] = [parts[at]] * chance.choice((1, 2, 200))
    elif way == 2:
        other = chance.randrange(1, len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif way == 3:
        parts[at] = damage(chance, parts[at])
    else:
        parts.insert(at, damage(chance, parts[chance.randrange(len(parts))]))
    return b"".join(parts)


def _split(data: bytes) -> list[bytes]:
    """Cut a file into its head and its chunks, segments or blocks; the whole where we do not know
    how.
    """
    if data.startswith(PNG_MARK):
        return [data[:8], *_chunks(data, 8, ">I", 8)]
    if data[:4] == b"RIFF":
        return [data[:12], *_chunks(data, 12, "<I", 4)]
    if data.startswith(b"\xff\xd8"):
        return re.split(rb"(?=\xff[\xc0-\xcf\xda-\xef\xfe])", data)
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        order = "<" if data[:2] == b"II" else ">"
        if len(data) >= 8:
            at = int(struct.unpack_from(f"{order}L", data, 4)[0])
            if at + 2 <= len(data):
                count = struct.unpack_from(f"{order}H", data, at)[0]
                ends = [at + 2 + 12 * n for n in range(count + 1)]
                return [data[: at + 2], *(data[a : a + 12] for a in ends[:-1]), data[ends[-1] :]]
    if data.startswith(b"GIF8"):
        return re.split(rb"(?=\x21[\xf9\xfe\xff\x01])|(?=\x2c\x00\x00)", data)
    return [data]


def _chunks(data: bytes, position: int, length: str, extra: int) -> list[bytes]:
    found = []
    while position < len(data):
        # A RIFF chunk is named before its length, a PNG chunk after it.
        at = position if length == ">I" else position + 4
        size = int(struct.unpack_from(length, data, at)[0]) if at + 4 <= len(data) else 0
        end = position + 4 + extra + size + (size % 2 if length == "<I" else 0)
        found.append(data[position:end])
        position = end
    return found


def _lie(chance: random.Random, data: bytes) -> bytes:
    """Write another size where the header has its own."""
    changed = bytearray(data)
    size = chance.choice(SIZES)
    for kind, place in _size_fields(data):
        if place + struct.calcsize(kind) <= len(data) and chance.random() < 0.6:
            limit = (1 << 8 * struct.calcsize(kind)) - 1
            struct.pack_into(kind, changed, place, size & limit)
    return _right_sums(bytes(changed))


def _size_fields(data: bytes) -> list[tuple[str, int]]:
    if data.startswith(PNG_MARK):
        return [(">I", 16), (">I", 20), (">B", 24), (">B", 25), (">B", 28)]
    if data.startswith(b"GIF8"):
        frame = data.find(b"\x2c\x00\x00\x00\x00")
        return [
            ("<H", 6),
            ("<H", 8),
            *([("<H", frame + 5), ("<H", frame + 7)] if frame > 0 else []),
        ]
    if data.startswith(b"BM"):
        return [("<I", 18), ("<I", 22), ("<H", 28), ("<I", 30), ("<I", 46), ("<I", 10)]
    if data[:4] == b"RIFF":
        return [("<H", 24), ("<H", 27), ("<I", 16), ("<I", 21), ("<H", 26)]
    if data.startswith(b"\xff\xd8"):
        found = re.search(rb"\xff[\xc0-\xc2]", data)
        at = found.start() if found else len(data)
        return [(">H", at + 5), (">H", at + 7), (">B", at + 9), (">B", at + 11), (">H", at + 2)]
    order = "<" if data[:2] == b"II" else ">"
    return [(f"{order}L", 10 + 12 * tag + 8) for tag in range(20)] + [(f"{order}L", 4)]


def _right_sums(data: bytes) -> bytes:
    """Give the chunks of a PNG their right checksums, so that more than the sum is looked at."""
    if not data.startswith(PNG_MARK):
        return data
    parts = _split(data)
    return parts[0] + b"".join(
        png_chunk(part[4:8], part[8:-4])
        if len(part) >= 12 and struct.unpack(">I", part[:4])[0] == len(part) - 12
        else part
        for part in parts[1:]
    )
