"""The classes of a model, and what an answer about an image is. Pure: no store, no engine, no HTTP.

The classes of a model are fixed with its weights: an ordered list of ids that never change, each
with the name that people read. Two names that only differ in width, accents' encoding or case are
one name to a person, so they are refused (`fold`).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.errors import ManifestError

LONGEST_NAME = 200  # characters
UNKNOWN_NAME = "unknown"  # what an image is answered that is of no label, unless a map says else
Scores = Literal["top", "all", "none"]


class OutputClass(BaseModel):
    """One output of a classifier: its immutable id, and the name shown to people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=LONGEST_NAME)
    name: str = Field(min_length=1, max_length=LONGEST_NAME)


@dataclass(frozen=True)
class Score:
    """One label with its probability, 0 to 1, and the output's position."""

    label: str
    probability: float
    index: int


@dataclass(frozen=True)
class Answer:
    """What a classifier says of one image."""

    label: str
    confidence: float
    scores: tuple[Score, ...]


def fold(name: str) -> str:
    """Return the form under which two names count as the same (Unicode NFKC, casefolded,
    trimmed).
    """
    return unicodedata.normalize("NFKC", name).casefold().strip()


def find_name_fault(name: str) -> str:
    """Say why a name is none that people could read and write, or "" for one that is."""
    if name != name.strip() or not name.isprintable():
        return "begins or ends with a space, or has characters that do not print"
    if len(name) > LONGEST_NAME:
        return f"has {len(name)} characters, more than {LONGEST_NAME}"
    return ""


def check_names(names: Sequence[str]) -> None:
    """Raise `ManifestError` when two class names look the same to a person."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(fold(name), name)
        if other is not name:
            raise ManifestError(
                f"class names {other!r} and {name!r} are the same after Unicode folding; names "
                "must be unique"
            )


def fingerprint(classes: Sequence[OutputClass]) -> str:
    """Return a digest of the class ids, in whatever order, by which a label map knows its model."""
    joined = "\x00".join(sorted(entry.id for entry in classes))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]
