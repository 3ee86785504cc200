"""`manifest.json`: what a bundle says of itself. Written last, so its presence is the commit.

Unknown keys are refused: a manifest from a newer Sightline says so by its format version instead of
being half understood.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from models.errors import ManifestError
from models.kinds import KINDS
from models.labels import OutputClass, check_names
from models.preprocess import PreprocessSpec

FORMAT_VERSION = 1
NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Artifact(_Frozen):
    """One file of the bundle. `engine` is empty for what is not a model: references, cards,
    plots.
    """

    path: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    engine: str = ""
    precision: str = ""
    requirements: dict[str, str] = {}
    bytes: int = Field(ge=0)
    sha256: Digest


class Outputs(_Frozen):
    """Widths of the output tensors: C classes (0 without), D features."""

    probabilities: int = Field(ge=0)
    embedding: int = Field(ge=1)


class Tolerance(_Frozen):
    """How far an engine may stray from the reference outputs and still serve.

    The defaults leave room for bfloat16: against fp32 the largest difference of a probability was
    0.004 and the lowest cosine of an embedding 0.997 (EfficientNet-Lite0, OpenVINO on a CPU with
    AMX).
    """

    probability: float = Field(0.02, gt=0, le=1)
    cosine: float = Field(0.99, gt=0, le=1)


class Manifest(_Frozen):
    """The whole description of one version of one model."""

    format_version: Literal[1] = 1
    name: Name
    version: int = Field(ge=1)
    kind: str
    created: datetime
    run_id: str
    code_revision: str
    config_digest: str
    preprocess: PreprocessSpec
    outputs: Outputs
    classes: tuple[OutputClass, ...] = ()
    temperature: float = Field(1.0, gt=0)
    tolerance: Tolerance = Tolerance()
    metrics: dict[str, float] = {}
    artifacts: tuple[Artifact, ...] = ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        expected = self.outputs.probabilities if KINDS[self.kind].has_classes else 0
        if len(self.classes) != expected:
            raise ValueError(f"{len(self.classes)} classes listed, but the outputs have {expected}")
        if len({entry.id for entry in self.classes}) != len(self.classes):
            raise ValueError("class ids must be unique")
        check_names([entry.name for entry in self.classes])
        paths = [artifact.path for artifact in self.artifacts]
        if len(set(paths)) != len(paths):
            raise ValueError("an artifact path is listed twice")
        return self

    def artifact(self, path: str) -> Artifact:
        """Return the artifact with that path, or raise `ManifestError` naming those there are."""
        for artifact in self.artifacts:
            if artifact.path == path:
                return artifact
        known = ", ".join(artifact.path for artifact in self.artifacts) or "none"
        raise ManifestError(f"bundle {self.label} has no artifact {path!r}; it has {known}")

    @property
    def label(self) -> str:
        """`name/version`, for messages."""
        return f"{self.name}/{self.version}"


def dump_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as indented UTF-8 JSON."""
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def parse_manifest(data: bytes, uri: str) -> Manifest:
    """Read a manifest, or raise `ManifestError` naming the place and each thing that is wrong with
    it.
    """
    try:
        raw: Any = json.loads(data)
    except ValueError as error:
        raise ManifestError(f"{uri}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ManifestError(f"{uri}: expected a JSON object, got {type(raw).__name__}")
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"{uri}: format version {version!r}; this Sightline reads {FORMAT_VERSION}. Upgrade "
            "Sightline, or "
            "export the model again"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}"
            for item in error.errors()
        )
        raise ManifestError(f"{uri}: {wrong}") from error


def check_name(name: str) -> str:
    """Return the model name, or raise `ManifestError` when it could not stand in a URL and a
    path.
    """
    if not re.match(NAME_PATTERN, name):
        raise ManifestError(
            f"model name {name!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-', starting and ending "
            "with a letter "
            "or digit"
        )
    return name
