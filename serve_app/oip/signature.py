"""The tensors of a model as the Open Inference Protocol names them, and what a model says of itself
in the protocol.

A model takes its images in one of several inputs. Some clients insist on a model with exactly one
input and one output: for them each input is also a view, with the main output alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from models.kinds import Kind
from models.manifest import Manifest
from serve_app.documents import document_names
from serve_app.model import ServedModel

PLATFORM = "sightline"
CONFIG_TYPES = {"FP32": "TYPE_FP32", "UINT8": "TYPE_UINT8", "BYTES": "TYPE_STRING"}
WHOLE = ""  # the name of the view that has everything


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dims` leave out the batch, which is the first dimension of each."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    format: str = ""  # Triton's word for the order of an image's dimensions

    def metadata(self) -> dict[str, Any]:
        """Return how it stands among the metadata; -1 is any number."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.dims]}

    def config(self) -> dict[str, Any]:
        """Return how it stands in Triton's configuration, which leaves out the batch."""
        fields = {
            "name": self.name,
            "data_type": CONFIG_TYPES[self.datatype],
            "dims": list(self.dims) or [1],
        }
        return {**fields, "format": self.format} if self.format else fields


@dataclass(frozen=True)
class View:
    """The inputs, of which a request gives one, and the outputs that it may ask for."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def views_of(manifest: Manifest, kind: Kind) -> dict[str, View]:
    """Return the views of a model by name: the whole of it, and one for each of its inputs."""
    inputs, outputs = _inputs(manifest), _outputs(manifest, kind)
    main = outputs[0]
    whole = View(WHOLE, _by_name(inputs), _by_name(outputs))
    alone = {spec.name: View(spec.name, _by_name([spec]), _by_name([main])) for spec in inputs}
    return {WHOLE: whole, **alone}


def metadata_of(model: ServedModel, view: View) -> dict[str, Any]:
    """Return the metadata of a model, or of a view of it."""
    return {
        "name": model.manifest.name,
        "versions": [str(model.manifest.version)],
        "platform": f"{PLATFORM}_{model.predictor.engine.name}",
        "inputs": [spec.metadata() for spec in view.inputs.values()],
        "outputs": [spec.metadata() for spec in view.outputs.values()],
    }


def config_of(model: ServedModel, view: View) -> dict[str, Any]:
    """Return the configuration in the form that Triton's clients read, and our own facts."""
    is_one_of_many = len(view.inputs) > 1
    optional = {"optional": True} if is_one_of_many else {}
    return {
        "name": model.manifest.name,
        "platform": f"{PLATFORM}_{model.predictor.engine.name}",
        "backend": model.predictor.engine.name,
        "max_batch_size": model.limits.max_images,
        "input": [{**spec.config(), **optional} for spec in view.inputs.values()],
        "output": [spec.config() for spec in view.outputs.values()],
        "sightline": _own_facts(model),
    }


def _own_facts(model: ServedModel) -> dict[str, Any]:
    manifest, engine = model.manifest, model.predictor.engine
    labels = model.labels.status()
    return {
        "kind": model.kind.name,
        "calls": sorted(model.kind.calls),
        "has_label_map": model.kind.has_label_map,
        "version": manifest.version,
        "bundle": model.predictor.bundle.uri,
        "created": manifest.created,
        "documents": document_names(manifest),
        "classes": [entry.name for entry in manifest.classes],
        "preprocess": manifest.preprocess.model_dump(),
        "limits": model.limits.model_dump(),
        "engine": {
            "name": engine.name,
            "precision": engine.precision,
            "device": engine.device,
            "feeding": asdict(engine.feeding),
            "refusals": model.predictor.refusals,
            "milliseconds_an_image": model.predictor.compared,
        },
        "proof": asdict(model.predictor.proof),
        "start": dict(model.start),
        **({"labels": labels} if labels else {}),
    }


def _inputs(manifest: Manifest) -> list[TensorSpec]:
    height, width = manifest.preprocess.height, manifest.preprocess.width
    return [
        TensorSpec("image", "BYTES", (1,)),
        TensorSpec("pixels", "UINT8", (height, width, 3), "FORMAT_NHWC"),
        TensorSpec("tensor", "FP32", (3, height, width), "FORMAT_NCHW"),
    ]


def _outputs(manifest: Manifest, kind: Kind) -> list[TensorSpec]:
    """The first is the main one."""
    outputs = [
        TensorSpec(name, "FP32", (getattr(manifest.outputs, name),)) for name in kind.outputs
    ]
    return [*outputs, TensorSpec("label", "BYTES", ())] if kind.has_classes else outputs


def _by_name(specs: list[TensorSpec]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in specs}
