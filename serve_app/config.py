"""What a serve file may set for one model: the `args` of `serve_app.app:build`.

Everything is checked before a replica starts, so a slip in a serve file fails the deployment with
one sentence instead of a replica that dies again and again. It knows nothing of Ray but the names
of its settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.decoders import MIB, ImageLimits
from models.engines.base import ENGINES, EngineOptions
from models.errors import ConfigError

Options = TypeVar("Options", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """What one request may cost at most."""

    max_body_bytes: int = Field(64 * MIB, ge=1)
    max_image_bytes: int = Field(32 * MIB, ge=1)
    max_pixels: int = Field(100_000_000, ge=1, description="as the image's header states them")
    max_images: int = Field(64, ge=1, description="in one request")
    upload_seconds: float = Field(60, gt=0, description="for a body to arrive")
    max_upload_bytes: int = Field(
        256 * MIB, ge=1, description="held by bodies that are still arriving, per replica"
    )
    max_queued_bytes: int = Field(
        512 * MIB, ge=1, description="held by bodies that are not answered yet, per replica"
    )

    @model_validator(mode="after")
    def _let_the_largest_body_in(self) -> Limits:
        for name in ("max_upload_bytes", "max_queued_bytes"):
            if getattr(self, name) < self.max_body_bytes:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is less than max_body_bytes = "
                    f"{self.max_body_bytes}, so that the largest body could never be answered"
                )
        return self

    @property
    def image(self) -> ImageLimits:
        """The part that the decoder checks."""
        return ImageLimits(self.max_image_bytes, self.max_pixels)


class ServeOptions(_Frozen):
    """One model, served as one application."""

    bundle: str = Field(min_length=1, description="URI, <model store>/<name>/<version>")

    label_store: str | None = Field(None, description="URI; for kinds with a label map")
    label_poll_seconds: float = Field(1.0, gt=0, description="between looks for new revisions")

    engines: tuple[str, ...] = Field(("openvino", "torch"), min_length=1)
    device: Literal["cpu", "cuda"] | None = Field(None, description="cuda if num_gpus > 0")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int | None = Field(
        None,
        ge=1,
        description="per replica; num_cpus rounded up if unset, or a share of the "
        "cores where `replicas`, `autoscaling` and `num_cpus` are unset, too",
    )
    decode_threads: int | None = Field(
        None,
        ge=1,
        description="per replica; one more than `threads` if unset, or "
        "as many on engines that take batches",
    )
    batch_wait_ms: float = Field(2.0, ge=0, le=1000, description="for engines that take batches")

    replicas: int | None = Field(
        None, ge=1, description="as many as fill the cores (or GPUs) there are, if unset"
    )
    autoscaling: dict[str, Any] | None = Field(None, description="Ray Serve's autoscaling_config")
    num_cpus: float = Field(1, ge=0, description="reserved per replica")
    num_gpus: float = Field(0, ge=0, description="reserved per replica; a fraction shares one GPU")

    keys_file: str | None = Field(None, description="who may call, beside SIGHTLINE_KEYS")
    docs: bool = Field(True, description="whether /openapi.json is answered")

    metrics: bool = Field(True, description="through Ray's agent, to Prometheus")
    access_log: Literal["file", "stderr", "off"] = Field(
        "file", description="beside the replica's log in Ray's log folder"
    )
    access_log_sample: float = Field(
        0.01, ge=0, le=1, description="share of the requests without an error that are logged"
    )

    # A replica holds the bodies of all these: `limits.max_queued_bytes` at most.
    max_requests: int = Field(96, ge=1, description="at once, per replica; beyond it 429")
    max_queued_images: int = Field(
        512, ge=1, description="the same of all their images that are not scored yet"
    )
    busy_requests: int | None = Field(
        None,
        ge=1,
        description="the same while more comes than can be answered, where each image of a request "
        "counts; 6 per thread, or two batches, if unset",
    )
    retry_after_seconds: float = Field(
        1.0, ge=0, description="told with every 429 and 503 over HTTP, rounded up"
    )
    deadline_seconds: float = Field(
        60, gt=0, description="from the end of a request's body to its answer; beyond it 503"
    )

    start_patience_seconds: float = Field(
        60, ge=0, description="a replica waits so long for a store that does not answer"
    )
    max_surge_percent: int | None = Field(
        None,
        ge=0,
        le=100,
        description="new replicas started before old ones stop; 20 where there is room, if unset",
    )

    limits: Limits = Limits()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ServeOptions:
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError("give `replicas` or `autoscaling`, not both")
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown:
            known = ", ".join(ENGINES)
            raise ValueError(f"engines: unknown engine {unknown[0]!r}; expected some of {known}")
        return self

    @property
    def engine_options(self) -> EngineOptions:
        """The part that the engine is opened with.

        A replica uses as many threads as it reserves CPUs. By default an engine would take all
        cores it sees, and so would the replica beside it (measured on 2 cores: 271 requests/s
        instead of 322).
        """
        return EngineOptions(
            engines=self.engines,
            device=self.device or ("cuda" if self.num_gpus else "cpu"),
            precision=self.precision,
            threads=self.threads or max(1, -int(-self.num_cpus // 1)),
        )


class CatalogOptions(_Frozen):
    """What may be set for the catalog, which learns of the models from Serve itself."""

    keys_file: str | None = Field(None, description="who may call, beside SIGHTLINE_KEYS")
    docs: bool = Field(True, description="whether /docs and /openapi.json are answered")
    metrics: bool = Field(True, description="of requests, through Ray's agent, to Prometheus")


def parse_options(model: type[Options], args: Mapping[str, Any], thing: str) -> Options:
    """Check the `args` of a serve file, or raise `ConfigError` naming each setting that is
    wrong.
    """
    try:
        return model.model_validate(dict(args))
    except ValidationError as error:
        wrong = "; ".join(_explain(model, dict(item)) for item in error.errors())
        raise ConfigError(f"args of {thing}: {wrong}") from error


def _explain(model: type[BaseModel], item: dict[str, Any]) -> str:
    path: Sequence[Any] = item["loc"]
    name = ".".join(map(str, path))
    if item["type"] == "extra_forbidden":
        known = list(_fields_at(model, path[:-1]))
        nearest = difflib.get_close_matches(str(path[-1]), known, n=1)
        advice = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
        return f"unknown setting {name!r} = {item['input']!r}; {advice}"
    if item["type"] == "missing":
        return f"{name!r} is required and missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{name!r} = {item['input']!r}: {message}" if name else message


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> Sequence[str]:
    """Return the names of the settings at a place: at the top, or inside a group such as
    `limits`.
    """
    for step in path:
        field = model.model_fields.get(str(step))
        if (
            field is None
            or not isinstance(field.annotation, type)
            or not issubclass(field.annotation, BaseModel)
        ):
            return ()
        model = field.annotation
    return tuple(model.model_fields)
