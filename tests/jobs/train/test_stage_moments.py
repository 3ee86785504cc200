"""What a head is given of the layers inside a frozen backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.config import load_config
from jobs.train.config import TrainConfig
from jobs.train.features import open_extractor
from jobs.train.idle import idle_settings
from jobs.train.network import ServedNetwork, build_network
from jobs.train.stage_moments import read_stages
from jobs.train.worker import prepare_network
from models.errors import ConfigError
from tests.jobs.train.test_network import SMALL, images
from tests.jobs.train.test_train_config import ROOT


def test_the_pooled_features_come_first_then_the_moments_of_each_stage() -> None:
    network = build_network("resnet10t", 2, reads_stages=True).eval()
    plain = build_network("resnet10t", 2).eval()
    plain.load_state_dict(
        {name: value for name, value in network.state_dict().items() if "head" not in name},
        strict=False,
    )
    seen: list[Tensor] = []
    body = network.backbone
    assert isinstance(body.layer1, nn.Module)
    assert isinstance(body.layer4, nn.Module)
    body.layer1.register_forward_hook(lambda module, given, answer: seen.append(answer))
    body.layer4.register_forward_hook(lambda module, given, answer: seen.append(answer))
    with torch.inference_mode():
        features = network.features(images(3))
        pooled = plain.features(images(3))
    first, last = (values.flatten(2).double().numpy() for values in seen)
    assert features.shape == (3, 512 + 2 * (64 + 128 + 256 + 512))
    torch.testing.assert_close(features[:, :512], pooled)
    np.testing.assert_allclose(features[:, 512:576], first.mean(2), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(features[:, 576:640], first.std(2), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(features[:, -512:], last.std(2), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backbone", [SMALL, "convnext_atto", "vit_tiny_patch16_224"])
def test_convolutions_and_transformers_give_their_stages(backbone: str) -> None:
    network = build_network(backbone, 2, reads_stages=True).eval()
    size = 224 if backbone.startswith("vit") else 64
    pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.inference_mode():
        features = network.features(pixels)
        probabilities, embedding = ServedNetwork(network)(pixels)
    assert features.shape == (2, network.head.in_features)
    assert features.shape[1] > network.num_pooled
    assert probabilities.shape == (2, 2)
    # An embedding is the last layer's: the others' numbers are of another size.
    torch.testing.assert_close(
        embedding, nn.functional.normalize(features[:, : network.num_pooled], dim=1)
    )


def test_the_largest_maps_are_left_out_and_of_many_four_are_read() -> None:
    assert read_stages(build_network("tf_efficientnet_lite0", 2).backbone).indices == [1, 2, 3, 4]
    assert read_stages(build_network("vit_tiny_patch16_224", 2).backbone).indices == [2, 5, 8, 11]


def test_the_weights_of_a_backbone_have_the_same_names() -> None:
    names = [name for name in build_network(SMALL, 2).state_dict() if "head" not in name]
    read = build_network(SMALL, 2, reads_stages=True).state_dict()
    assert [name for name in read if "head" not in name] == names


def test_openvino_computes_them_as_torch_does() -> None:
    network = build_network(SMALL, 2, reads_stages=True).eval()
    with torch.inference_mode():
        expected = network.features(images(5))
    with open_extractor(network, torch.device("cpu"), 1) as extract:
        np.testing.assert_allclose(extract(images(5).numpy()), expected, rtol=1e-3, atol=1e-4)


def test_an_embedding_is_not_learnt_of_them() -> None:
    path = ROOT / "configs" / "train" / "embedding.yaml"
    with pytest.raises(ConfigError, match=r"network\.features: stages is of the kinds that tell"):
        load_config(TrainConfig, path, ["network.features=stages", "network.freeze=backbone"])


def test_a_head_with_a_hidden_layer_is_built_by_its_name_and_not_for_an_embedding() -> None:
    path = ROOT / "configs" / "train" / "fast.yaml"
    small = ["network.backbone=resnet10t", "network.weights=none"]
    config = load_config(TrainConfig, path, [*small, "network.hidden_units=32"])
    network = prepare_network(config, 3).eval()
    assert network.head.in_features == 32
    with torch.inference_mode():
        probabilities, embedding = ServedNetwork(network)(images(2))
        torch.testing.assert_close(probabilities, network(images(2)).softmax(dim=1))
    assert embedding.shape == (2, 512)  # the last layer's features, not the hidden ones
    with pytest.raises(ConfigError, match=r"network\.hidden_units is of the kinds that tell"):
        load_config(
            TrainConfig, ROOT / "configs" / "train" / "embedding.yaml", ["network.hidden_units=32"]
        )


def test_a_backbone_that_is_trained_is_read_at_its_end() -> None:
    path = ROOT / "configs" / "train" / "fast.yaml"
    overrides = ["network.backbone=resnet10t", "network.weights=none", "network.hidden_units=0"]
    frozen = load_config(TrainConfig, path, overrides)
    trained = load_config(TrainConfig, path, [*overrides, "network.freeze=none"])
    assert prepare_network(frozen, 2).head.in_features > 512
    assert prepare_network(trained, 2).head.in_features == 512
    assert not [note for note in idle_settings(frozen) if "network.features" in note]
    assert [note for note in idle_settings(trained) if "network.features: stages" in note]


def test_a_backbone_without_stages_is_refused() -> None:
    class Flat(nn.Module):
        default_cfg = {"input_size": (3, 32, 32)}  # noqa: RUF012

    with pytest.raises(AttributeError, match="forward_intermediates"):
        read_stages(Flat())
