"""What is exported does what was trained in every engine, or is not published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.export.exporter import Draft, Provenance, export_draft
from jobs.train.network import Network, ServedNetwork, build_network
from models.bundle import Bundle, open_bundle, publish
from models.engines.base import EngineOptions
from models.errors import ProofError
from models.predictor import open_predictor
from models.preprocess import PreprocessSpec

pytestmark = pytest.mark.slow  # torch needs some ten seconds to load what an export needs

SIZE = 64


class SmallNet(nn.Module):
    """Mean colour of patches through fixed random weights; no training needed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.kind = kind
        self.mix = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Return the outputs of the kind for uint8 images (N, H, W, 3)."""
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        features = torch.tanh(self.mix(pixels)).mean(dim=(2, 3))
        embedding = functional.normalize(features, dim=1)
        if self.kind == "embedding":
            return embedding
        return functional.softmax(self.head(features), dim=1), embedding


def random_images(count: int) -> npt.NDArray[np.uint8]:
    """Return noise of the model's size."""
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def export(model: nn.Module, folder: Path, kind: str = "generic") -> Draft:
    """Export a model of two classes, or of none if the kind has none."""
    return export_draft(
        model,
        folder,
        name=f"small-{kind}",
        kind=kind,
        classes=("good", "defective") if kind == "generic" else (),
        preprocess=PreprocessSpec(height=SIZE, width=SIZE),
        reference_images=random_images(5),
        provenance=Provenance("run", "config", "code"),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """One published bundle per kind."""
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for kind in ("generic", "embedding"):
        draft = export(SmallNet(kind), folder / kind, kind)
        uri = publish(folder / "models", draft.manifest, draft.folder).uri
        found[kind] = open_bundle(uri, cache=folder / "cache")
    return found


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("kind", ["generic", "embedding"])
def test_every_engine_reproduces_the_network_one_by_one_and_in_a_batch(
    exported: dict[str, Bundle], kind: str, engine: str
) -> None:
    predictor = open_predictor(exported[kind], EngineOptions(engines=(engine,), precision="fp32"))
    assert predictor.engine.name == engine
    images = random_images(20)
    with torch.inference_mode():
        expected = SmallNet(kind).eval()(torch.from_numpy(images))
    embedding = expected if kind == "embedding" else expected[1]
    np.testing.assert_allclose(predictor.predict(images).embedding, embedding, atol=1e-4)
    for i in range(len(images)):
        single = predictor.predict(images[i : i + 1])
        np.testing.assert_allclose(single.embedding[0], embedding[i], atol=1e-4)
        if kind == "generic":
            assert single.probabilities is not None
            np.testing.assert_allclose(single.probabilities[0], expected[0][i], atol=1e-4)
    predictor.close()


@pytest.mark.gpu
def test_torch_serves_on_the_gpu(exported: dict[str, Bundle]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device on this machine")
    options = EngineOptions(engines=("torch",), device="cuda")
    predictor = open_predictor(exported["generic"], options)
    assert predictor.engine.device == "cuda"
    predictor.close()


def test_a_real_backbone_is_exported_and_proven_by_every_engine(tmp_path: Path) -> None:
    draft = export(ServedNetwork(build_network("mobilenetv3_small_050", 2)), tmp_path)
    assert {(p.engine, p.precision) for p in draft.parities} >= {
        ("openvino", "fp32"),
        ("torch", "fp32"),
    }
    for parity in draft.parities:
        if parity.precision == "fp32":
            assert parity.proof is not None
            assert parity.proof.largest_probability_difference < 1e-3
    assert draft.manifest.outputs.embedding == 1024


def test_a_temperature_is_in_every_artifact_and_changes_no_answer(tmp_path: Path) -> None:
    torch.manual_seed(3)
    parts = (nn.Conv2d(3, 8, 4, stride=4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Network(nn.Sequential(*parts), 8, 2, dropout=0.0).eval()
    with torch.no_grad():
        network.head.weight.mul_(30)  # sure of it: there is something to cool
    images = random_images(12)
    with torch.inference_mode():
        logits = network(torch.from_numpy(images))
    draft = export(ServedNetwork(network, 2.5), tmp_path)
    for engine in ("openvino", "torch"):
        options = EngineOptions(engines=(engine,), precision="fp32")
        predictor = open_predictor(draft.bundle, options)
        found = predictor.predict(images).probabilities
        predictor.close()
        assert found is not None
        np.testing.assert_allclose(found, torch.softmax(logits / 2.5, dim=1), atol=1e-3)
        assert np.abs(found - torch.softmax(logits, dim=1).numpy()).max() > 0.05
        assert (found.argmax(axis=1) == logits.argmax(dim=1).numpy()).all()


class Unsteady(nn.Module):
    """Says something else when traced than when run: what a broken export looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and embeddings."""
        features = images.float().mean(dim=(1, 2)) / 255
        if type(images) is not Tensor:  # a stand-in, which only tracing passes
            features = -features
        unit = functional.normalize(features, dim=1)
        return torch.softmax(self.head(features) * 30, dim=1), unit


def test_an_artifact_that_differs_from_the_network_stops_the_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ProofError, match="not published"):
        export(Unsteady(), tmp_path)
