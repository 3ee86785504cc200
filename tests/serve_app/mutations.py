"""Requests made hostile by chance: one per number, the same every time for the same seed.

The files in them are damaged by `damaged_files`; bodies, headers, queries and paths here.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.serve_app.damaged_files import damage, damaged_file
from tests.serve_app.seed_files import seed_files

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
        return damaged_file(chance, self._files)

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
            packed = gzip.compress(text + raw, 1, mtime=0)
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
