"""The kinds of model, as a table: what each answers with and which calls it takes.

Serving and export read this table and never name a kind themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """One kind of model."""

    name: str
    outputs: tuple[str, ...]  # output tensors of the exported graph, in order
    calls: frozenset[str]  # HTTP calls beside the Open Inference Protocol
    has_label_map: bool = False  # its labels may change while it serves

    @property
    def has_classes(self) -> bool:
        """Whether the model tells classes apart."""
        return "probabilities" in self.outputs


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("generic", ("probabilities", "embedding"), frozenset({"classify", "embed"})),
        Kind(
            "dynamic",
            ("probabilities", "embedding"),
            frozenset({"classify", "embed"}),
            has_label_map=True,
        ),
        Kind("embedding", ("embedding",), frozenset({"embed"})),
    )
}


def find_kind(name: str) -> Kind:
    """Return the kind of that name, or raise `ConfigError` with the known ones."""
    if name not in KINDS:
        raise ConfigError(f"unknown kind of model {name!r}; expected one of {', '.join(KINDS)}")
    return KINDS[name]
