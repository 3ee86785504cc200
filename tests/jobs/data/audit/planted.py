"""A set of pictures of parts with faults planted in it, each on record."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

from tests.jobs.data.images import BROKEN

SIDE = 160
Pixels = npt.NDArray[np.uint8]
# What lies on the belt is red or blue: a tiny network tells them apart.
COLOURS = {"good": (200, 60, 50), "defective": (50, 70, 200)}


def picture(number: int, label: str = "good", side: int = SIDE) -> Image.Image:
    """Return a part of its label's colour on a belt, unlike that of any other number."""
    random = np.random.default_rng(number)
    belt = random.normal(120, 25, (9, 9)).astype(np.float32)
    grey = cv2.resize(belt, (side, side), interpolation=cv2.INTER_CUBIC)
    pixels = np.repeat(grey[..., None], 3, axis=2)
    colour = COLOURS.get(label, (120, 200, 60))
    for _ in range(4):
        centre = random.integers(side // 6, side - side // 6, 2).tolist()
        size = random.integers(side // 10, side // 4, 2).tolist()
        shade = tuple(float(value + random.normal(0, 15)) for value in colour)
        cv2.ellipse(pixels, (centre, size, float(random.uniform(0, 180))), shade, -1)
    pixels += random.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, quality: int = 92) -> bytes:
    """Return a picture as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@dataclass
class Planted:
    """Files by name below the set, and the names in which each kind of fault was planted."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, name: str, data: bytes, *kinds: str) -> str:
        """Add a file, and take note of its faults."""
        self.files[name] = data
        for kind in kinds:
            self.faults[kind].add(name)
        return name


def planted_set() -> Planted:
    """Return a set with train, validation and test, and every kind of fault."""
    made = Planted()
    for split, count in (("train", 110), ("validation", 25), ("test", 25)):
        for label in COLOURS:
            for number in range(count):
                seed = len(made.files)
                name = f"{split}/{label}/{number:03}.jpg"
                made.add(name, encoded(picture(seed, label)))
    _swap_labels(made)
    _copy(made)
    _nearly_copy(made)
    _spoil(made)
    return made


def _swap_labels(made: Planted) -> None:
    """Put 5 % of the pictures into the folder of the other class."""
    for split, numbers in (
        ("train", (2, 19, 30, 36, 94, 104)),
        ("validation", (3,)),
        ("test", (3,)),
    ):
        for number in numbers:
            for label, other in (("good", "defective"), ("defective", "good")):
                data = made.files.pop(f"{split}/{label}/{number:03}.jpg")
                made.add(f"{split}/{other}/swapped-{number:03}.jpg", data, "mislabelled")


def _copy(made: Planted) -> None:
    files = dict(made.files)
    for number in range(40, 44):
        name = f"train/good/{number:03}.jpg"
        made.faults["copy_across_splits"] |= {name}
        made.add(f"test/good/leak-{number}.jpg", files[name], "copy_across_splits")
        name = f"train/good/{number + 10:03}.jpg"
        made.faults["label_conflict"] |= {name}
        made.add(f"train/defective/torn-{number}.jpg", files[name], "label_conflict", "mislabelled")
        # Of two copies the one that comes first by its path stays.
        made.add(
            f"train/good/z-copy-{number}.jpg", files[f"train/good/{number + 21:03}.jpg"], "copy"
        )


def _nearly_copy(made: Planted) -> None:
    """Save pictures again at low quality, brighter, smaller, softer."""
    ways: tuple[Callable[[Image.Image], bytes], ...] = (
        lambda image: encoded(image, 40),
        lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.15)),
        lambda image: encoded(image.resize((SIDE * 3 // 5, SIDE * 3 // 5))),
        lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.8)),
    )
    for place, way in enumerate(ways):
        for number in (71 + place, 85 + place):
            source = f"train/defective/{number:03}.jpg"
            image = Image.open(io.BytesIO(made.files[source]))
            made.faults["near_copy_across_splits"] |= {source}
            name = f"validation/defective/near-{number}.jpg"
            made.add(name, way(image), "near_copy_across_splits")
            source = f"train/good/{number:03}.jpg"
            image = Image.open(io.BytesIO(made.files[source]))
            made.faults["near_label_conflict"] |= {source}
            made.add(
                f"train/defective/twin-{number}.jpg",
                way(image),
                "near_label_conflict",
                "mislabelled",
            )


def _spoil(made: Planted) -> None:
    for name, data in BROKEN.items():
        made.add(f"train/good/{name}", data, "broken")
    for number in range(6):
        seed = 5000 + 10 * number
        made.add(f"train/good/tiny-{number}.jpg", encoded(picture(seed, side=48)), "tiny")
        dark = ImageEnhance.Brightness(picture(seed + 1)).enhance(0.15)
        made.add(f"train/good/dark-{number}.jpg", encoded(dark), "dark")
        soft = picture(seed + 2).filter(ImageFilter.GaussianBlur(3))
        made.add(f"train/good/soft-{number}.jpg", encoded(soft), "blurry")
        plain = Image.new("RGB", (SIDE, SIDE), (90 + number,) * 3)
        made.add(f"train/good/plain-{number}.jpg", encoded(plain), "low_information")
        white = Image.fromarray(np.full((SIDE, SIDE, 3), 255 - number, np.uint8))
        made.add(f"train/good/white-{number}.png", encoded(white), "bright", "low_information")
        strip = picture(seed + 3, side=400).crop((0, 0, 400, 90))
        made.add(f"train/good/strip-{number}.jpg", encoded(strip), "odd_aspect")
        made.add(f"train/good/large-{number}.jpg", encoded(picture(seed + 4, side=640)), "odd_size")
