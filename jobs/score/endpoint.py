"""What is served behind an address: asked once, before anything is scored.

An address that is not one of a model is answered with the models that the server has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jobs.score.exchange import Exchange, Missing, Rejected
from jobs.score.patience import Trouble
from models.errors import ConfigError, EndpointError
from models.kinds import find_kind

MODELS = "/v2/models/"
# Of a server whose configuration does not say.
MAX_IMAGES, MAX_BODY_BYTES = 16, 16 << 20


@dataclass(frozen=True)
class Endpoint:
    """One served model."""

    url: str
    model: str
    kind: str
    calls: frozenset[str]
    has_label_map: bool
    num_classes: int
    embedding_width: int
    max_images: int
    max_body_bytes: int
    max_image_bytes: int


def open_endpoint(url: str, exchange: Exchange) -> Endpoint:
    """Ask the model at `url` what it is; waits for a server that is just starting.

    Raises `ConfigError` for an address that is not one of a model, `EndpointError` for one that
    refuses or does not answer.
    """
    url = check_url(url)

    def ask() -> Any:
        try:
            return exchange.get(f"{url}/config")
        except Missing as missing:
            raise _explain(url, exchange, str(missing)) from None
        except Rejected as rejected:
            raise EndpointError(
                f"{url}/config is refused: {rejected}. Expected the address of a Sightline model"
            ) from None

    return _read_config(url, exchange.persist(ask))


def check_url(url: str) -> str:
    """Return the address without a final slash. Raises `ConfigError` for one that is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"--url {url!r} is no address; expected one as http://localhost:8000/v2/models/caps"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "--url takes neither a user nor a query: put an access key into SIGHTLINE_KEY, and say "
            "how to score with options"
        )
    return url.rstrip("/")


def _read_config(url: str, config: Any) -> Endpoint:
    own = config.get("sightline") if isinstance(config, Mapping) else None
    if not isinstance(own, Mapping) or "kind" not in own:
        raise ConfigError(f"{url}/config is not that of a Sightline model: {str(config)[:200]}")
    limits: Mapping[str, Any] = own.get("limits") or {}
    kind = find_kind(str(own["kind"]))
    body = int(limits.get("max_body_bytes", MAX_BODY_BYTES))
    widths = [out["dims"] for out in config.get("output", ()) if out.get("name") == "embedding"]
    return Endpoint(
        url=url,
        model=str(config.get("name", "")),
        kind=kind.name,
        calls=frozenset(own.get("calls") or kind.calls),
        has_label_map=kind.has_label_map,
        num_classes=len(own.get("classes") or ()),
        embedding_width=int(widths[0][-1]) if widths else 0,
        max_images=int(limits.get("max_images", MAX_IMAGES)),
        max_body_bytes=body,
        max_image_bytes=min(body, int(limits.get("max_image_bytes", body))),
    )


def _explain(url: str, exchange: Exchange, missing: str) -> Exception:
    """Say what could have been meant by an address at which nothing answers."""
    root = url.partition("/v2")[0]
    try:
        models = exchange.post(f"{root}/v2/repository/index", b"{}", "application/json")
        states = {str(entry["name"]): str(entry.get("state", "")) for entry in models}
    except (Missing, Rejected, EndpointError, AttributeError, KeyError, TypeError):
        # Something else may answer there, in whatever form.
        return EndpointError(f"{missing}. Expected the address of a model, as {root}{MODELS}caps")
    asked = url.partition(MODELS)[2].partition("/")[0]
    if states.get(asked) == "LOADING":
        return Trouble(f"model {asked!r} at {root} is still loading")
    if not states:
        return ConfigError(f"{url} is not a model, and {root} serves none now")
    listed = ", ".join(f"{root}{MODELS}{name}" for name in sorted(states))
    return ConfigError(f"{url} is not a model. The models there: {listed}")
