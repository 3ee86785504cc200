"""What clients send for an hour: each kind of request with the statuses that are right for it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.forms import v2_base64
from benchmarks.serving.calls import CALLS, Build, multipart_of, raw
from benchmarks.wire import Address, Request

LEFT = "left"  # no status: the client went before there was one
BROKEN = "broken"  # no status: the connection ended under the request
OK = frozenset({"200"})
# The answer to one that goes on sending may be lost when the server ends the connection.
REFUSED_UNDER_WAY = frozenset({"413", BROKEN})
TOO_MANY = 65  # images in one request
EDITS_UNTIL_ROLLBACK = 5
EDIT_SECONDS = 10


@dataclass(frozen=True)
class Kind:
    """One kind of request. `weight` is its share of all, `right` what may come of it."""

    name: str
    weight: float
    requests: tuple[Request, ...]
    right: frozenset[str]
    manner: str = "whole"  # or slow, leaving, silent, too long: see `sender`
    address: Address | None = None  # where it is asked, if not at the server


def build_mix(
    models: Mapping[str, str], images: Path, large: Path, metrics: Address | None = None
) -> list[Kind]:
    """Return all kinds, for the paths of a generic and a dynamic model; `metrics` is where Ray's
    agent is scraped.
    """
    generic, dynamic = models["generic"], models["dynamic"]
    files = sorted(images.iterdir())
    photo = files[0].read_bytes()
    broken = images.parent / "broken.jpg"
    broken.write_bytes(photo[: len(photo) // 2])
    png = images.parent / "photo.png"
    png.write_bytes(_as_png(photo))
    small = images.parent / "small.png"
    small.write_bytes(_as_png(photo, (32, 32)))

    def scored(name: str, weight: float, call: str | Build, model: str) -> Kind:
        build = CALLS[call] if isinstance(call, str) else call
        return Kind(name, weight, tuple(build(model, images)), OK)

    def odd(name: str, weight: float, request: Request, status: str, manner: str = "whole") -> Kind:
        return Kind(name, weight, (request,), frozenset({status}), manner)

    def get(path: str) -> Request:
        return Request(path, b"", method="GET")

    jpeg = (("Content-Type", "image/jpeg"),)
    one = raw(generic, images)[0]
    mixed = [multipart_of(generic, [*files[1:count], broken]) for count in (4, 10, 16)]
    scrape = [Kind("scrape", 1, (get("/metrics"),), OK, address=metrics)] if metrics else []
    return [
        scored("photo", 30, raw, generic),
        scored("photo, labels that change", 24, raw, dynamic),
        odd("photo of 12 megapixels", 1, raw(generic, large)[0], "200"),
        odd("PNG", 4, Request(f"{generic}/classify", png.read_bytes()), "200"),
        Kind("4 to 16 files, one of them broken", 1, tuple(mixed), OK),
        scored("16 images, OIP binary", 1, "16 images, OIP binary", dynamic),
        scored("OIP binary", 8, "OIP binary", generic),
        Kind(
            "OIP JSON",
            4,
            tuple(v2_base64(f"{generic}/infer", file) for file in files[:20]),
            OK,
        ),
        scored("vectors, bytes", 4, "vectors", dynamic),
        odd("vector, JSON", 2, Request(f"{dynamic}/embed", photo, jpeg), "200"),
        odd("scores of all", 2, Request(f"{dynamic}/classify?scores=all", photo, jpeg), "200"),
        odd("ready", 4, get(f"{generic}/ready"), "200"),
        odd("config", 1, get(f"{dynamic}/config"), "200"),
        odd("stats", 1, get(f"{generic}/stats"), "200"),
        odd("labels", 1, get(f"{dynamic}/labels"), "200"),
        odd("revisions", 1, get(f"{dynamic}/labels/revisions"), "200"),
        odd("stats of all", 1, get("/v2/models/stats"), "200"),
        odd("models", 1, Request("/v2/repository/index", b"", method="POST"), "200"),
        odd("page", 1, get("/"), "200"),
        odd("broken photo", 2, Request(f"{generic}/classify", broken.read_bytes(), jpeg), "422"),
        odd("no image", 1, Request(f"{generic}/classify", b"not an image", jpeg), "415"),
        odd("nothing there", 1, get(f"{generic}/nothing"), "404"),
        odd("wrong parameter", 1, Request(f"{generic}/classify?top_k=x", photo, jpeg), "400"),
        odd("bad JSON", 1, Request(f"{generic}/infer", b"{", _JSON), "400"),
        odd("wrong key", 1, _labels(f"{dynamic}/labels", {"edits": []}, "wrong"), "401"),
        odd("too many images", 1, multipart_of(generic, [small] * TOO_MANY), "413"),
        odd("body that says it is too large", 1, one, "413", "declares too much"),
        Kind("body that is too large", 0.3, (one,), REFUSED_UNDER_WAY, "sends too much"),
        odd("slow upload", 1, one, "200", "slow"),
        odd("client that leaves while it sends", 1, one, LEFT, "leaves early"),
        odd("client that leaves before the answer", 1, one, LEFT, "leaves late"),
        odd("connection without a request", 1, one, LEFT, "silent"),
        *scrape,
    ]


def label_write(model: str, label: str, number: int, key: str) -> Kind:
    """Return the write of labels with that number, from 1: the label with that id is renamed, and
    after a few times the name before the last comes back.
    """
    if number % EDITS_UNTIL_ROLLBACK == 0:
        body: dict[str, Any] = {"revision": number - 2, "reason": "soak"}
        request = _labels(f"{model}/labels/rollback", body, key, "POST")
        return Kind("rollback of labels", 0, (request,), OK)
    edit = {"op": "rename", "label": label, "name": f"{label} {number}"}
    request = _labels(f"{model}/labels", {"edits": [edit], "reason": "soak"}, key)
    return Kind("write of labels", 0, (request,), OK)


_JSON = (("Content-Type", "application/json"),)


def _labels(path: str, body: Mapping[str, Any], key: str, method: str = "PUT") -> Request:
    headers = (*_JSON, ("Authorization", f"Bearer {key}"))
    return Request(path, json.dumps(body).encode(), headers, method)


def _as_png(data: bytes, size: tuple[int, int] | None = None) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    (image.resize(size) if size else image).save(buffer, "PNG")
    return buffer.getvalue()
