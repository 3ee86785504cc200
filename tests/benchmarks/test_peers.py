"""Peers without installing them: how images travel, how answers are read, why one is missing."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import signal
import struct
from pathlib import Path

import pytest

from benchmarks.common import ending_by_exception
from benchmarks.environments import EnvironmentFailure, make_environment
from benchmarks.peers.forms import (
    base64_json,
    multipart,
    raw,
    read_json,
    read_v2,
    read_v2_binary,
    triton_raw,
    v2_base64,
)
from benchmarks.peers.reference import NUM_CHECKED, PeerFailure, compare, open_reference
from benchmarks.peers.scoring import MODES, torchvision_transform
from benchmarks.peers.table import PEERS, find_peer
from models.bundle import open_bundle
from models.engines.base import EngineOptions
from models.engines.openvino_engine import open_engine
from models.preprocess import PreprocessSpec, prepare
from tests.bundles import tiny_bundle
from tests.serve_app.conftest import encode

DATA = b"\xff\xd8\xff\r\n--image"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "cap.jpg"
    path.write_bytes(DATA)
    return path


def test_a_raw_request_is_the_file(image: Path) -> None:
    request = raw("/classify", image)
    assert request.body == DATA
    assert request.headers == (("Content-Type", "image/jpeg"),)
    assert request.encode("host:1").endswith(b"Content-Length: 12\r\n\r\n" + DATA)


def test_a_multipart_request_is_read_by_a_mime_parser(image: Path) -> None:
    request = multipart("images")("/classify", image)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    (part,) = parser.parsebytes(head.encode() + b"\r\n" + request.body).iter_parts()
    assert part.get_param("name", header="content-disposition") == "images"
    assert part.get_filename() == "cap.jpg"
    assert part.get_payload(decode=True) == DATA


def test_base64_requests_hold_the_file(image: Path) -> None:
    plain = json.loads(base64_json("image_data")("/predict", image).body)
    assert base64.b64decode(plain["image_data"]) == DATA
    (tensor,) = json.loads(v2_base64("/infer", image).body)["inputs"]
    assert base64.b64decode(tensor["data"][0]) == DATA


def test_a_binary_request_of_triton_has_a_header_length_of_zero(image: Path) -> None:
    request = triton_raw("/infer", image)
    assert request.body == DATA
    assert dict(request.headers)["Inference-Header-Content-Length"] == "0"


def test_answers_are_read_in_every_form() -> None:
    assert read_json(b'{"label": "a", "probabilities": [0.25, 0.75]}') == [0.25, 0.75]
    assert read_json(b'[{"label": "a", "probabilities": [0.25, 0.75]}]') == [0.25, 0.75]
    outputs = [{"name": "label", "data": ["a"]}, {"name": "probabilities", "data": [0.25, 0.75]}]
    assert read_v2(json.dumps({"outputs": outputs}).encode()) == [0.25, 0.75]
    head = {"outputs": [{"name": "probabilities", "parameters": {"binary_data_size": 8}}]}
    assert read_v2_binary(json.dumps(head).encode() + struct.pack("<2f", 0.25, 0.75)) == [
        0.25,
        0.75,
    ]


def test_a_wrong_answer_is_refused_and_a_close_call_is_not() -> None:
    compare([0.52, 0.48], [0.49, 0.51], tolerance=0.05, image="cap.jpg")
    with pytest.raises(PeerFailure, match=r"cap\.jpg: a probability differs by 0\.4000"):
        compare([0.5, 0.5], [0.1, 0.9], tolerance=0.05, image="cap.jpg")
    with pytest.raises(PeerFailure, match="3 probabilities, expected 2"):
        compare([0.5, 0.3, 0.2], [0.1, 0.9], tolerance=0.05, image="cap.jpg")
    with pytest.raises(PeerFailure, match="differs by nan"):
        compare([float("nan"), 0.5], [0.5, 0.5], tolerance=0.05, image="cap.jpg")


def test_every_peer_has_a_server_and_a_form_for_both_modes(image: Path) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "peers"
    for name, entry in PEERS.items():
        assert (folder / f"{entry.module}.py").is_file(), name
        for mode in MODES:
            request = entry.form(mode)(entry.path, image)
            assert DATA in request.body or base64.b64encode(DATA) in request.body, (name, mode)


def test_an_unknown_peer_is_answered_with_those_there_are() -> None:
    with pytest.raises(KeyError, match="expected one of litserve, bentoml"):
        find_peer("litserv")


@pytest.mark.slow
def test_the_documented_way_sees_nearly_the_same_pixels() -> None:
    import io

    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:360, 0:480]
    photo = np.stack([rows % 256, columns % 256, (rows + columns) // 4], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    for spec in (PreprocessSpec(), PreprocessSpec(resize="stretch")):
        theirs = torchvision_transform(spec)(Image.open(io.BytesIO(data))).numpy()
        ours = prepare(data, spec)
        assert theirs.shape == ours.shape
        assert np.abs(theirs.astype(int) - ours.astype(int)).mean() < 6


def test_a_rule_without_a_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot do 'pad' to 224 x 224"):
        torchvision_transform(PreprocessSpec(resize="pad"))


@pytest.mark.slow
def test_the_documented_way_is_held_to_what_the_network_says_of_its_own_pixels(
    tmp_path: Path,
) -> None:
    import numpy as np
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(encode(number, (300 + number, 211)))
    uri = tiny_bundle(tmp_path / "models")
    reference = open_reference(uri, images)
    assert len(reference.images) == NUM_CHECKED
    bundle = open_bundle(uri)
    spec = bundle.manifest.preprocess
    engine = open_engine(bundle, "fp32", EngineOptions(threads=1))
    for mode, rows in reference.probabilities.items():
        for file, row in zip(reference.images, rows, strict=True):
            ours = prepare(file.read_bytes(), spec)
            theirs = torchvision_transform(spec)(Image.open(file)).numpy()
            assert not np.array_equal(ours, theirs)
            pixels = np.ascontiguousarray(ours if mode == "same" else theirs)
            compare(engine.run(pixels[None])["probabilities"][0], row, 1e-4, file.name)
    engine.close()
    assert list(reference.probabilities) == ["same", "own"] == list(MODES)


def test_a_request_to_end_is_an_exception_so_that_peers_are_stopped() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), ending_by_exception():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "peers" / "absent"
    (tmp_path / "local").mkdir()
    wanted = [f"absent-package @ file://{tmp_path}/local/absent.whl"]
    with pytest.raises(EnvironmentFailure, match=r"uv pip failed: .*absent"):
        make_environment(folder, wanted)
    with pytest.raises(EnvironmentFailure, match=r"uv venv failed: .*2\.7"):
        make_environment(folder, wanted, python="==2.7.18")


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    made = make_environment(folder, [])
    mark = folder / "mark"
    mark.touch()
    assert make_environment(folder, []) == made
    assert mark.exists()
    assert make_environment(folder, [], python=str(made.python.resolve())).python.is_file()
