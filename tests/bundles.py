"""Small real bundles for tests: a tiny network written as ONNX, published with its reference.

Nothing is trained and torch is not needed, so the tests of models and serving start at once.
Bundles that come out of training are made by the tests of `jobs.export`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.bundle import describe_file, publish
from models.kinds import find_kind
from models.labels import OutputClass
from models.manifest import Manifest, Outputs
from models.predictor import REFERENCE
from models.preprocess import PreprocessSpec
from models.validation_outputs import VALIDATION, ValidationOutputs, dump_outputs

NUM_FEATURES = 8
PATCH = 4

Array = npt.NDArray[np.float32]


class TinyNet:
    """Fixed random filters over patches, averaged: a network small enough to be written twice, as
    ONNX for the engines and in NumPy for what they have to reproduce.
    """

    def __init__(self, kind: str, num_classes: int, seed: int = 7) -> None:
        random = np.random.default_rng(seed)
        self.outputs = find_kind(kind).outputs
        # Filters as (features, channels, rows, columns), the layout of an ONNX convolution.
        self.filters = random.normal(0, 0.4, (NUM_FEATURES, 3, PATCH, PATCH)).astype(np.float32)
        self.head = random.normal(0, 2, (NUM_FEATURES, max(1, num_classes))).astype(np.float32)

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """Return the outputs of the kind for images (N, H, W, 3)."""
        count, height, width, _ = images.shape
        pixels = images.astype(np.float32) / 127.5 - 1
        patches = pixels.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3)
        features = np.tanh(np.einsum("nypxqc,fcpq->nyxf", patches, self.filters)).mean(axis=(1, 2))
        scores = np.exp(features @ self.head)
        found = {
            "probabilities": scores / scores.sum(axis=1, keepdims=True),
            "embedding": features / np.linalg.norm(features, axis=1, keepdims=True),
        }
        return {name: found[name].astype(np.float32) for name in self.outputs}

    def to_onnx(self, height: int, width: int) -> onnx.ModelProto:
        """Return the same as ONNX, with a dynamic batch."""
        constants = {
            "scale": np.array(127.5, np.float32),
            "one": np.array(1, np.float32),
            "filters": self.filters,
            "head": self.head,
            "places": np.array([2, 3], np.int64),
            "channels": np.array([1], np.int64),
        }
        nodes: list[Any] = [
            helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["cast", "scale"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "one"], ["centred"]),
            helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "filters"], ["mixed"], strides=[PATCH, PATCH]),
            helper.make_node("Tanh", ["mixed"], ["bounded"]),
            helper.make_node("ReduceMean", ["bounded", "places"], ["features"], keepdims=0),
            helper.make_node("ReduceL2", ["features", "channels"], ["length"], keepdims=1),
            helper.make_node("Div", ["features", "length"], ["embedding"]),
        ]
        if "probabilities" in self.outputs:
            nodes += [
                helper.make_node("MatMul", ["features", "head"], ["scores"]),
                helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
            ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", height, width, 3])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None])
                for name in self.outputs
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def validation_outputs(network: TinyNet, names: Sequence[str], size: int) -> ValidationOutputs:
    """Return what the network says of images whose truth is drawn by lot, mostly its own answer."""
    random = np.random.default_rng(11)
    coarse = random.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    images = coarse.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    probabilities = network.run(images)["probabilities"]
    drawn = random.integers(0, len(names), len(images))
    truth = np.where(random.random(len(images)) < 0.7, probabilities.argmax(axis=1), drawn)
    return ValidationOutputs("validation", probabilities, truth.astype(np.intp))


def tiny_bundle(
    store: Path | str,
    *,
    kind: str = "generic",
    classes: Sequence[str] = ("good", "defective"),
    size: int = 64,
    name: str = "tiny",
    documents: Mapping[str, bytes] | None = None,
    seed: int = 7,
) -> str:
    """Publish a bundle of a tiny network, of filters by `seed`, to a model store, with documents if
    any are given; return its URI.
    """
    names = () if kind == "embedding" else tuple(classes)
    network = TinyNet(kind, len(names), seed)
    images = np.random.default_rng(3).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        onnx.save(network.to_onnx(size, size), folder / "model.onnx")
        arrays: dict[str, Any] = {"images": images, **network.run(images)}
        np.savez_compressed(folder / REFERENCE, **arrays)
        extra = []
        for document, content in (documents or {}).items():
            (folder / document).write_bytes(content)
            extra.append(describe_file(folder / document))
        if find_kind(kind).has_label_map:
            (folder / VALIDATION).write_bytes(
                dump_outputs(validation_outputs(network, names, size))
            )
            extra.append(describe_file(folder / VALIDATION))
        manifest = Manifest(
            name=name,
            version=1,
            kind=kind,
            created=datetime.now(UTC),
            run_id="test",
            code_revision="test",
            config_digest="test",
            preprocess=PreprocessSpec(height=size, width=size, resize="stretch"),
            outputs=Outputs(probabilities=len(names), embedding=NUM_FEATURES),
            classes=tuple(OutputClass(id=label, name=label) for label in names),
            artifacts=(
                describe_file(folder / "model.onnx", engine="openvino", precision="fp32"),
                describe_file(folder / REFERENCE),
                *extra,
            ),
        )
        return publish(store, manifest, folder).uri
