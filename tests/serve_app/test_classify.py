"""`classify`: good images in every form, and every bad thing a client may send."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image
from starlette.testclient import TestClient

from models.predictor import Predictor
from tests.serve_app.conftest import encode, refused


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def huge_png() -> bytes:
    """A PNG whose header promises 20,000 x 20,000 pixels."""
    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100)))


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# --- good images ---------------------------------------------------------------------------------


def test_a_raw_image_is_answered_with_what_the_predictor_says(
    client: TestClient, predictor: Predictor
) -> None:
    image = encode(1)
    answer = client.post("/classify", content=image, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200
    (expected,) = predictor.classify(predictor.predict(predictor.prepare(image)[None]))
    assert answer.json() == {
        "label": expected.label,
        "confidence": pytest.approx(expected.confidence),
        "scores": [
            {"label": s.label, "probability": pytest.approx(s.probability)} for s in expected.scores
        ],
        "model": "tiny",
        "version": 1,
        "engine": "openvino",
        "precision": predictor.engine.precision,
    }


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", None],
)
def test_a_raw_body_is_an_image_whatever_its_content_type(
    client: TestClient, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = client.post("/classify", content=encode(kind="PNG"), headers=headers)
    assert answer.status_code == 200


def test_the_three_ways_to_send_an_image_give_the_same_answer(client: TestClient) -> None:
    image = encode(2)
    raw = client.post("/classify", content=image).json()
    single = client.post("/classify", json={"image": b64(image)}).json()
    (listed,) = client.post("/classify", json={"images": [b64(image)]}).json()["results"]
    (file,) = client.post("/classify", files={"file": ("a.jpg", image)}).json()["results"]
    assert single == raw
    for entry in (listed, file):
        assert {
            name: raw[name] for name in ("label", "confidence", "scores")
        }.items() <= entry.items()


def test_several_images_are_answered_in_their_order(client: TestClient) -> None:
    images = [encode(seed) for seed in range(4)]
    single = [client.post("/classify", content=image).json()["confidence"] for image in images]
    answer = client.post("/classify", json={"images": [b64(image) for image in images]}).json()
    assert [entry["confidence"] for entry in answer["results"]] == pytest.approx(single)
    assert [entry["index"] for entry in answer["results"]] == [0, 1, 2, 3]
    assert (answer["model"], answer["version"]) == ("tiny", 1)


def test_a_base64_data_url_is_read(client: TestClient) -> None:
    text = "data:image/jpeg;base64," + b64(encode())
    assert client.post("/classify", json={"image": text}).status_code == 200


def test_base64_with_line_breaks_is_read(client: TestClient) -> None:
    text = base64.encodebytes(encode()).decode()
    assert client.post("/classify", json={"image": text}).status_code == 200


def test_the_version_in_the_path_answers_the_same(client: TestClient) -> None:
    image = encode()
    with_version = client.post("/versions/1/classify", content=image)
    assert with_version.json() == client.post("/classify", content=image).json()


@pytest.mark.parametrize(
    ("query", "num_scores"), [("top_k=1", 1), ("top_k=99", 2), ("scores=all", 2)]
)
def test_scores_are_as_many_as_asked_and_sum_to_one_when_all(
    client: TestClient, query: str, num_scores: int
) -> None:
    scores = client.post(f"/classify?{query}", content=encode()).json()["scores"]
    assert len(scores) == num_scores
    if num_scores == 2:
        assert sum(score["probability"] for score in scores) == pytest.approx(1, abs=1e-5)
        assert scores[0]["probability"] >= scores[1]["probability"]


def test_scores_none_leaves_them_out(client: TestClient) -> None:
    answer = client.post("/classify?scores=none", content=encode()).json()
    assert "scores" not in answer
    assert answer["label"] in ("good", "defective")


# --- one bad image -------------------------------------------------------------------------------


def test_text_is_not_an_image(client: TestClient) -> None:
    assert "not an image" in refused(client.post("/classify", content=b"hello"), 415, "image_type")


def test_a_truncated_image_is_undecodable(client: TestClient) -> None:
    image = encode()
    refused(client.post("/classify", content=image[: len(image) // 2]), 422, "image_decode")


def test_an_empty_body_is_undecodable(client: TestClient) -> None:
    assert "0 bytes" in refused(client.post("/classify", content=b""), 422, "image_decode")


def test_a_huge_picture_is_refused_by_its_header(client: TestClient) -> None:
    answer = client.post("/classify", content=huge_png())
    assert "20,000 x 20,000" in refused(answer, 413, "image_too_large")


def test_an_image_with_too_many_bytes_is_refused(client: TestClient) -> None:
    answer = client.post("/classify", content=encode() + bytes(250_000))
    assert "200,000" in refused(answer, 413, "image_too_large")


@pytest.mark.parametrize("text", ["%%%", "YQ", "é", 5, None, ["x"]])
def test_what_is_not_base64_is_refused(client: TestClient, text: object) -> None:
    refused(client.post("/classify", json={"image": text}), 400, "bad_base64")


# --- one bad image among good ones ---------------------------------------------------------------


def test_a_bad_image_among_json_images_spoils_only_its_own_entry(client: TestClient) -> None:
    good = encode()
    images = [b64(good), b64(b"hello"), "%%%", b64(good)]
    answer = client.post("/classify", json={"images": images})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [entry["index"] for entry in results] == [0, 1, 2, 3]
    assert results[0]["label"] == results[3]["label"]
    assert [entry.get("code") for entry in results] == [None, "image_type", "bad_base64", None]
    assert "label" not in results[1]


def test_a_bad_file_among_multipart_files_spoils_only_its_own_entry(client: TestClient) -> None:
    files = [
        ("file", ("good.jpg", encode())),
        ("file", ("empty.jpg", b"")),
        ("file", ("cut.jpg", encode()[:300])),
        ("file", ("huge.png", huge_png())),
    ]
    results = client.post("/classify", files=files).json()["results"]
    assert [entry["file"] for entry in results] == ["good.jpg", "empty.jpg", "cut.jpg", "huge.png"]
    assert "label" in results[0]
    assert [entry["code"] for entry in results[1:]] == [
        "image_decode",
        "image_decode",
        "image_too_large",
    ]


# --- requests that are malformed -----------------------------------------------------------------


@pytest.mark.parametrize("top_k", ["0", "-1", "two", "1.5", "", "²", "9" * 30])
def test_a_wrong_top_k_is_refused(client: TestClient, top_k: str) -> None:
    answer = client.post("/classify", params={"top_k": top_k}, content=encode())
    assert repr(top_k) in refused(answer, 400, "bad_parameter")


def test_wrong_scores_are_answered_with_the_choices(client: TestClient) -> None:
    answer = client.post("/classify?scores=best", content=encode())
    assert "top, all, none" in refused(answer, 400, "bad_parameter")


def test_an_unknown_query_parameter_is_answered_with_the_nearest(client: TestClient) -> None:
    answer = client.post("/classify?topk=2", content=encode())
    assert "did you mean 'top_k'?" in refused(answer, 400, "bad_parameter")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"{}",
        b'{"imags": []}',
        b'{"images": "x"}',
        b'{"image": "", "x": 1}',
        b"\xff",
    ],
)
def test_bad_json_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400, "bad_json")


def test_no_image_at_all_is_refused(client: TestClient) -> None:
    refused(client.post("/classify", json={"images": []}), 400, "no_image")


def test_too_many_json_images_are_refused(client: TestClient) -> None:
    answer = client.post("/classify", json={"images": ["x"] * 5})
    assert "limit is 4" in refused(answer, 413, "too_many_images")


def test_too_many_files_are_refused(client: TestClient) -> None:
    answer = client.post("/classify", files=[("f", ("a.jpg", b"x"))] * 5)
    refused(answer, 413, "too_many_images")


def test_a_body_declared_too_large_is_refused_before_it_is_read(client: TestClient) -> None:
    def unread() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Length": "400001"}
    answer = client.post("/classify", content=unread(), headers=headers)
    assert "400,001 bytes" in refused(answer, 413, "body_too_large")
    assert answer.headers["connection"] == "close"


def test_a_body_of_undeclared_length_is_counted_while_it_comes(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(9):
            yield bytes(50_000)

    answer = client.post("/classify", content=chunks())
    assert "more than 400,000" in refused(answer, 413, "body_too_large")


def test_an_image_of_undeclared_length_is_scored(client: TestClient) -> None:
    image = encode()
    answer = client.post("/classify", content=iter([image[:100], image[100:]]))
    assert answer.json() == client.post("/classify", content=image).json()


def test_a_wrong_content_length_is_refused(client: TestClient) -> None:
    answer = client.post("/classify", content=encode(), headers={"Content-Length": "many"})
    refused(answer, 400, "bad_request")


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    answer = client.post(
        "/classify", content=zlib.compress(encode()), headers={"Content-Encoding": "gzip"}
    )
    refused(answer, 415, "content_encoding")


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\nxyz\r\n'


@pytest.mark.parametrize(
    ("disposition", "file"),
    [
        ('form-data; name="f"; filename="a.jpg"', "a.jpg"),
        ('form-data; name="f"; filename=""', ""),
        ('form-data; name="f"; filename="a; b=c.jpg"', "a; b=c.jpg"),
        ('form-data; name="f"; filename="münze.jpg"', "münze.jpg"),
        ('FORM-DATA; filename=a.jpg; name="f"', "a.jpg"),
        (r'form-data; name="f"; filename="a\"b.jpg"', 'a"b.jpg'),
        (r'form-data; name="f"; filename="C:\photos\a.jpg"', "a.jpg"),
        ('form-data; name="f"; filename="a.jpg"; filename*=UTF-8\'\'b.jpg', "a.jpg"),
    ],
)
def test_names_of_files_are_read_however_they_are_written(
    client: TestClient, disposition: str, file: str
) -> None:
    head = f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    body = b"a preamble\r\n" + head + encode() + b"\r\n--b--\r\nan epilogue"
    (result,) = client.post("/classify", content=body, headers=MULTIPART).json()["results"]
    assert (result["file"], "label" in result) == (file, True)


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (PART, {"Content-Type": "multipart/form-data"}, "bad_multipart"),
        (PART, MULTIPART, "bad_multipart"),  # no final boundary: cut short
        (PART[:60], MULTIPART, "bad_multipart"),
        (b"nonsense", MULTIPART, "bad_multipart"),
        (b"", MULTIPART, "bad_multipart"),
        (b"--b\r\nX: " + b"y" * 9000 + b"\r\n\r\n", MULTIPART, "bad_multipart"),
        (
            b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\ntext\r\n--b--\r\n',
            MULTIPART,
            "not_a_file",
        ),
    ],
)
def test_a_malformed_multipart_body_is_refused(
    client: TestClient, body: bytes, headers: dict[str, str], code: str
) -> None:
    refused(client.post("/classify", content=body, headers=headers), 400, code)


# --- paths and methods ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/versions/2/classify", "/versions/x", "/versions/01", "/versions/latest/ready"]
)
def test_another_version_is_unknown(client: TestClient, path: str) -> None:
    assert "version 1" in refused(client.post(path, content=encode()), 404, "unknown_version")


def test_an_unknown_path_is_answered_with_the_known_ones(client: TestClient) -> None:
    assert "/classify" in refused(client.get("/clasify"), 404, "not_found")


def test_a_wrong_method_is_answered_with_the_right_one(client: TestClient) -> None:
    answer = client.get("/classify")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_an_animated_image_is_scored_by_its_first_frame(client: TestClient) -> None:
    frames = [Image.new("RGB", (70, 70), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    still = io.BytesIO()
    frames[0].save(still, "GIF")
    moving = client.post("/classify", content=buffer.getvalue()).json()
    assert moving == client.post("/classify", content=still.getvalue()).json()
