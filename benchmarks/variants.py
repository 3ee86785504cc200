"""A bundle as another kind, with the same weights, so that kinds can be compared."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from models.bundle import Bundle, describe_file, open_bundle, publish
from models.engines.base import engine_artifact
from models.kinds import find_kind
from models.predictor import REFERENCE

NETWORK = "model.onnx"


def as_kind(uri: str, kind: str, store: Path) -> str:
    """Publish the ONNX network of a bundle as a model of another kind, and return its URI.

    What the kind does not answer with is cut out of the graph and of the reference.
    """
    source = open_bundle(uri)
    outputs = find_kind(kind).outputs
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _write_network(source, outputs, folder / NETWORK)
        _write_reference(source, outputs, folder / REFERENCE)
        has_classes = find_kind(kind).has_classes
        manifest = source.manifest
        widths = {} if has_classes else {"probabilities": 0}
        changed = manifest.model_copy(
            update={
                "name": f"{manifest.name}-{kind}",
                "kind": kind,
                "classes": manifest.classes if has_classes else (),
                "outputs": manifest.outputs.model_copy(update=widths),
                "artifacts": (
                    describe_file(folder / NETWORK, engine="openvino", precision="fp32"),
                    describe_file(folder / REFERENCE),
                ),
            }
        )
        return publish(store, changed, folder).uri


def _write_network(source: Bundle, outputs: tuple[str, ...], path: Path) -> None:
    import onnx

    network = onnx.load(source.path(engine_artifact(source, "openvino")))
    unwanted = [output for output in network.graph.output if output.name not in outputs]
    for output in unwanted:
        network.graph.output.remove(output)
    onnx.save(network, path)


def _write_reference(source: Bundle, outputs: tuple[str, ...], path: Path) -> None:
    with np.load(source.path(REFERENCE)) as stored:
        kept = {name: stored[name] for name in stored.files if name in ("images", *outputs)}
    np.savez(path, **kept)
