"""Requests made hostile by chance: one per number, the same every time for the same seed.

A file is damaged by general means (bits, spans, splices, numbers that look like lengths) and by
means that know its format (chunks dropped, doubled, put in another order; sizes that lie; checksums
made right again, so that the damage is not refused at once). Bodies, headers and queries likewise.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.serve_app.seed_files import PNG_MARK, png_chunk, seed_files

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
BOUNDARY = "frontier"

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Sent:
    """One request, as it goes to the application."""

    method: str
    path: str  # below the model's own path
    query: bytes
    headers: Fields
    body: bytes


class Mutator:
    """Makes the requests of one seed."""

    def __init__(self, seed: int, input_size: tuple[int, int], paths: Sequence[str]) -> None:
        """`input_size` is the model's (height, width); `paths` its calls that take images."""
        self._seed = seed
        self._files = list(seed_files().values())
        self._size = input_size
        self._paths = list(paths)

    def request(self, number: int) -> Sent:
        """Return the request of that number."""
        chance = random.Random(f"{self._seed}/{number}")
        path = chance.choice(self._paths)
        headers, body = self._infer(chance) if path == "/infer" else self._upload(chance)
        query = b""
        if chance.random() < 0.1:
            query = _query(chance)
        if chance.random() < 0.15:
            headers = _damage_headers(chance, headers)
        method = "POST"
        if chance.random() < 0.01:
            method = chance.choice(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "", "pOST"))
        if chance.random() < 0.02:
            path = _damage_path(chance, path)
        return Sent(method, path, query, headers, body)

    def file(self, chance: random.Random) -> bytes:
        """Return a damaged image file."""
        data = chance.choice(self._files)
        if chance.random() < 0.02:
            return data
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            data = self._damaged(chance, data)[:MAX_BYTES]
        return _right_sums(data) if chance.random() < 0.7 else data

    def _damaged(self, chance: random.Random, data: bytes) -> bytes:
        how = chance.random()
        if how < 0.45:
            return _damage_parts(chance, data)
        if how < 0.55:
            return _splice(chance, data, chance.choice(self._files))
        return damage(chance, data)

    def _upload(self, chance: random.Random) -> tuple[Fields, bytes]:
        form = chance.random()
        if form < 0.75:
            return [], self.file(chance)
        files = [self.file(chance) for _ in range(chance.choice((0, 1, 1, 2, 3, 9)))]
        if form < 0.87:
            return _multipart(chance, files)
        return _json_upload(chance, files)

    def _infer(self, chance: random.Random) -> tuple[Fields, bytes]:
        form = chance.random()
        if form < 0.2:
            return [(b"inference-header-content-length", b"0")], self.file(chance)
        tensor, raw = (_encoded if form < 0.7 else self._pixels)(
            chance, [self.file(chance) for _ in range(chance.choice((0, 1, 1, 2, 3)))]
        )
        asked: dict[str, Any] = {"id": "7", "inputs": [tensor]}
        if chance.random() < 0.5:
            asked["outputs"] = chance.choice(
                (
                    [{"name": "embedding", "parameters": {"binary_data": True}}],
                    [{"name": "probabilities", "parameters": {"classification": 2}}],
                    [{"name": "label"}, {"name": "embedding"}],
                )
            )
        if chance.random() < 0.5:
            asked["parameters"] = {"binary_data_output": chance.choice((True, False, 1, None))}
        if chance.random() < 0.3:
            asked = _damage_value(chance, asked)
        text = json.dumps(asked).encode()
        if chance.random() < 0.2:
            text = damage(chance, text)
        length = len(text)
        if chance.random() < 0.1:
            length = max(0, length + chance.choice((-2, -1, 1, 2, 1000, -length)))
        headers = [(b"inference-header-content-length", str(length).encode())] if raw else []
        if raw and chance.random() < 0.3:
            raw = damage(chance, raw)
        if chance.random() < 0.05:
            packed = gzip.compress(text + raw, 1)
            encoded = (b"content-encoding", b"gzip")
            return [*headers, encoded], damage(chance, packed) if chance.random() < 0.6 else packed
        return headers, text + raw

    def _pixels(self, chance: random.Random, files: list[bytes]) -> tuple[dict[str, Any], bytes]:
        height, width = self._size
        shape = [max(1, len(files)), height, width, 3]
        tensor: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": shape}
        raw = chance.randbytes(shape[0] * height * width * 3)
        if chance.random() < 0.4:  # numbers of all kinds, among them what is none
            planes = [shape[0], 3, height, width]
            tensor, raw = {"name": "tensor", "datatype": "FP32", "shape": planes}, raw * 4
        return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw


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


def _multipart(chance: random.Random, files: list[bytes]) -> tuple[Fields, bytes]:
    lines = []
    for number, data in enumerate(files):
        name = chance.choice(("a.jpg", "é.png", "", 'q"uote', "x" * 300, "..\\..\\a", f"{number}"))
        about = f'Content-Disposition: form-data; name="f"; filename="{name}"'
        lines.append(f"--{BOUNDARY}\r\n{about}\r\n\r\n".encode() + data + b"\r\n")
    body = b"".join(lines) + f"--{BOUNDARY}--\r\n".encode()
    if chance.random() < 0.4:
        # The frame rather than the files in it.
        head, rest = body[:200], body[200:]
        body = damage(chance, head) + rest
    content_type = f"multipart/form-data; boundary={BOUNDARY}".encode()
    if chance.random() < 0.1:
        content_type = damage(chance, content_type)
    return [(b"content-type", content_type)], body


def _json_upload(chance: random.Random, files: list[bytes]) -> tuple[Fields, bytes]:
    texts: list[Any] = [base64.b64encode(data).decode() for data in files]
    if texts and chance.random() < 0.2:
        texts[0] = chance.choice(
            ("data:image/png;base64," + texts[0], "data:,", "http://127.0.0.1/a.png", None, {}, "é")
        )
    value: Any = {"images": texts}
    if len(texts) == 1 and chance.random() < 0.5:
        value = {"image": texts[0]}
    if chance.random() < 0.2:
        value = _damage_value(chance, value)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode()
    if chance.random() < 0.3:
        text = damage(chance, text)
    return [(b"content-type", b"application/json")], text


def _encoded(chance: random.Random, files: list[bytes]) -> tuple[dict[str, Any], bytes]:
    shape = chance.choice(([len(files)], [len(files), 1]))
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": shape}
    if chance.random() < 0.5:
        return {**tensor, "data": [base64.b64encode(data).decode() for data in files]}, b""
    raw = b"".join(struct.pack("<I", len(data)) + data for data in files)
    return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw


STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e300, 2**63, 2**64, "", "x" * 1000, "\x00", [], {}, [[]], [-1], [1, 1],
    {"a": {"b": []}}, "image", "probabilities", [2**40], [0], "NaN",
)  # fmt: skip


def _damage_value(chance: random.Random, value: Any) -> Any:
    """Return a JSON value with something in it replaced, dropped or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        changed = dict(value)
        way = chance.random()
        if way < 0.15:
            del changed[key]
        elif way < 0.3:
            changed[chance.choice(("parameters", "data", "shape", "name", "x", ""))] = value[key]
        else:
            changed[key] = _damage_value(chance, value[key])
        return changed
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], _damage_value(chance, value[at]), *value[at + chance.randrange(2) :]]
    return chance.choice(STRANGE)


NAMES = ("top_k", "scores", "min_revision", "limit", "x", "", "top_k[]", "%00", "\xff")
VALUES = ("1", "0", "-1", "all", "none", "top", "1e9", "9" * 40, "%ff", "%00", "%", "²", "x" * 5000)


def _query(chance: random.Random) -> bytes:
    pairs = [
        f"{chance.choice(NAMES)}={chance.choice(VALUES)}".encode("latin-1")
        for _ in range(chance.choice((1, 1, 2, 500)))
    ]
    query = b"&".join(pairs)
    return damage(chance, query) if chance.random() < 0.3 else query


HEADERS: Mapping[bytes, tuple[bytes, ...]] = {
    b"content-type": (
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary="a\\"b"; boundary=c',
        b"multipart/form-data; boundary*=utf-8''%e2%82%ac",
        b"multipart/form-data; boundary=" + b"\xff" * 60,
        b"\xff\xfe",
        b"application/json; charset=utf-16",
        b";" * 500,
    ),
    b"content-length": (b"", b"0", b"-1", b"+1", b"1e3", b"0x10", b"9" * 30, b"5, 5", b"\xb2"),
    b"inference-header-content-length": (b"", b"0", b"-1", b"1", b"9" * 18, b"9" * 40, b"\xff"),
    b"accept": (b"", b"*/*", b"application/octet-stream", b"text/html;q=0.1", b"\xff" * 100),
    b"content-encoding": (b"gzip", b"identity", b"", b"br, gzip", b"\xff"),
    b"transfer-encoding": (b"chunked", b"gzip, chunked", b"x"),
    b"authorization": (b"Bearer x", b"Bearer", b"Basic eDp5", b"\xff\x00", b"Bearer " + b"k" * 9),
    b"x-api-key": (b"", b"x", b"\xe9"),
    b"expect": (b"100-continue",),
    b"if-match": (b'"1"', b"*", b"x"),
    b"x-forwarded-prefix": (b"/elsewhere",),
    b"host": (b"", b"evil.example", b"\xff"),
}  # fmt: skip


def _damage_headers(chance: random.Random, headers: Fields) -> Fields:
    changed = list(headers)
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(list(HEADERS))
        value = chance.choice(HEADERS[name])
        if chance.random() < 0.2:
            value = damage(chance, value)
        if chance.random() < 0.5:
            changed = [field for field in changed if field[0] != name]
        changed.append((name, value))
    return changed


def _damage_path(chance: random.Random, path: str) -> str:
    return chance.choice(
        (
            "/" + path, path + "/", path + "//", "/." + path, "/../tiny" + path, path + "\x00",
            path.upper(), path[:-1], "/versions/1" + path, "/versions/" + path,
            "/versions/" + "9" * 5000, path + "\ufffd", path + "\udcff", "/%2e%2e" + path,
            path + ";x=1", "/" * 5000, "",
            "/versions/1/versions/1" + path, "\\" + path, path.replace("/", "%2f"),
        )
    )  # fmt: skip
