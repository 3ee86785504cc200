"""The peers: what to install, what to run, how to ask.

How a server is laid out in `same` and in `own` is told in its own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.peers.forms import (
    Form,
    Reader,
    base64_json,
    multipart,
    raw,
    read_json,
    read_v2,
    read_v2_binary,
    triton_raw,
    v2_base64,
)

# What `models` and `scoring` need, in the versions of this process, so that all do the same work.
SHARED = (
    "numpy",
    "simplejpeg",
    "opencv-python-headless",
    "pillow",
    "openvino",
    "obstore",
    "torch",
    "torchvision",
)
UNPINNED = ("pydantic",)


@dataclass(frozen=True)
class PeerEntry:
    """One row."""

    package: str  # whose version stands for the peer
    module: str  # below benchmarks.peers
    path: str
    ready_path: str | None  # answers 200 when there is something to ask; None: ask at once
    same: Form
    own: Form
    read: Reader = read_json
    requirements: tuple[str, ...] = ()
    not_pinned: tuple[str, ...] = ()  # of SHARED, where the peer needs older ones
    python: str | None = None  # a range for uv, where this process' Python does not do
    programs: Mapping[str, str] = field(default_factory=dict)  # and how to install them
    # Two of its processes that are stopped or woken (SIGSTOP), where they do not bear it at once.
    seconds_between: float = 0.0

    def form(self, mode: str) -> Form:
        """Return how an image is sent in `same` or `own`."""
        return self.same if mode == "same" else self.own


PEERS: dict[str, PeerEntry] = {
    "litserve": PeerEntry(
        package="litserve",
        module="litserve_server",
        path="/predict",
        ready_path="/health",
        same=raw,
        own=base64_json("image_data"),
    ),
    "bentoml": PeerEntry(
        package="bentoml",
        module="bentoml_server",
        path="/classify",
        ready_path="/readyz",
        same=raw,
        own=multipart("images"),
    ),
    "mlserver": PeerEntry(
        package="mlserver",
        module="mlserver_server",
        path="/v2/models/sightline/infer",
        ready_path="/v2/models/sightline/ready",
        same=v2_base64,
        own=v2_base64,
        read=read_v2,
        # Its worker processes ask for an event loop that newer ones do not make by themselves.
        requirements=("uvloop<0.22",),
    ),
    "torchserve": PeerEntry(
        package="torchserve",
        module="torchserve_server",
        path="/predictions/sightline",
        ready_path="/ping",
        same=raw,
        own=raw,
        requirements=("torch-model-archiver", "captum", "pyyaml"),  # imported, but not required
        programs={"java": "apt-get install openjdk-17-jre-headless"},
    ),
    "pytriton": PeerEntry(
        package="nvidia-pytriton",
        module="pytriton_server",
        path="/v2/models/sightline/infer",
        ready_path="/v2/models/sightline/ready",
        same=triton_raw,
        own=triton_raw,
        read=read_v2_binary,
        # Without the bound on numpy, an old PyTriton that states none is chosen instead.
        requirements=("numpy<2", "opencv-python-headless<4.12"),
        not_pinned=("numpy", "opencv-python-headless"),
        # The interpreter inside Triton is older than 3.11.6, whose multiprocessing does not run
        # in it.
        python=">=3.11,<3.11.6",
        # Its processes share locks and wait for them by the clock: woken at once, Triton found its
        # stubs silent and ended (`lock_exception`).
        seconds_between=0.3,
    ),
    "mosec": PeerEntry(
        package="mosec",
        module="mosec_server",
        path="/inference",
        ready_path=None,
        same=raw,
        own=raw,
    ),
    "fastapi": PeerEntry(
        package="fastapi",
        module="fastapi_server",
        path="/classify",
        ready_path="/openapi.json",
        same=raw,
        own=multipart("image"),
        requirements=("uvicorn[standard]", "python-multipart"),
    ),
}


def find_peer(name: str) -> PeerEntry:
    """Return a row. Raises `KeyError` with the names there are."""
    try:
        return PEERS[name]
    except KeyError:
        raise KeyError(f"unknown peer {name!r}; expected one of {', '.join(PEERS)}") from None
