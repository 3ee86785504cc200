"""What benchmarks measure with: a folder of photos and a bundle, taken from here or made on the
spot.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np

from models.bundle import newest_version
from models.decoders import IMAGE_SUFFIXES

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "clothing" / "test"
STATE = Path(".sightline")
BACKBONE = "tf_efficientnet_lite0"
NUM_IMAGES = 200
SYNTHETIC_SIZE = (534, 400)  # as most of the clothing photos


def collect_images(source: Path | None, target: Path) -> str:
    """Copy up to 200 photos to a flat folder and return where they come from."""
    source = source or (PHOTOS if PHOTOS.is_dir() else None)
    target.mkdir(parents=True, exist_ok=True)
    if source is None:
        for number in range(NUM_IMAGES):
            (target / f"{number:03}.jpg").write_bytes(_synthetic_photo(number))
        return "synthetic photos"
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise SystemExit(f"no images below {source}; expected {', '.join(IMAGE_SUFFIXES)}")
    step = max(1, len(found) // NUM_IMAGES)
    for number, path in enumerate(found[::step][:NUM_IMAGES]):
        shutil.copy(path, target / f"{number:03}{path.suffix.lower()}")
    return str(source.name)


def find_bundle(uri: str | None) -> str:
    """Return the bundle asked for, else the demo's newest, else one of EfficientNet-Lite0 made
    here.
    """
    if uri is not None:
        return uri
    store = STATE / "models"
    if (store / "elpv").is_dir():
        return f"{store}/elpv/{newest_version(store, 'elpv')}"
    made = STATE / "benchmarks" / "models"
    if (made / "lite0").is_dir():
        return f"{made}/lite0/{newest_version(made, 'lite0')}"
    return _make_bundle(made)


def _make_bundle(store: Path) -> str:
    """Export EfficientNet-Lite0 with random weights: as fast as with trained ones, and no
    download.
    """
    import tempfile

    import timm
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from jobs.export.exporter import Provenance, export_draft
    from models.bundle import publish
    from models.preprocess import PreprocessSpec, prepare

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model(BACKBONE, num_classes=0)
            self.head = nn.Linear(self.backbone.num_features, 2)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.backbone(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
            return functional.softmax(self.head(features), 1), functional.normalize(features)

    torch.manual_seed(0)
    spec = PreprocessSpec()
    with tempfile.TemporaryDirectory() as folder:
        draft = export_draft(
            Classifier(),
            Path(folder),
            name="lite0",
            kind="generic",
            classes=("good", "defective"),
            preprocess=spec,
            reference_images=np.stack([prepare(_synthetic_photo(n), spec) for n in range(4)]),
            provenance=Provenance("benchmark", "random-weights", BACKBONE),
        )
        return publish(store, draft.manifest, draft.folder).uri


def _synthetic_photo(seed: int) -> bytes:
    """Return a JPEG with the detail and the size of a photo: smooth shapes, edges and some
    grain.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (13, 10, 3), dtype=np.uint8)
    smooth = np.asarray(
        Image.fromarray(coarse).resize(SYNTHETIC_SIZE[::-1], Image.Resampling.BICUBIC)
    )
    grain = random.normal(0, 6, smooth.shape)
    buffer = io.BytesIO()
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
