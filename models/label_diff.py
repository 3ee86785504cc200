"""What differs between two label maps, label by label, in words for people and values for programs.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.label_map import Label, LabelMap, lookalikes
from models.label_revision import Revision

FIELDS = ("name", "aliases", "status", "outputs", "threshold", "merged_into")


@dataclass(frozen=True)
class Change:
    """One field of one label that differs. `label` is its id, or None for the map's own
    settings.
    """

    label: str | None
    field: str
    before: object
    after: object

    def describe(self) -> str:
        """Return the change as one line."""
        whose = "the map" if self.label is None else f"label {self.label!r}"
        return f"{whose}: {self.field} {_shown(self.before)} -> {_shown(self.after)}"


def differences(before: LabelMap, after: LabelMap) -> list[Change]:
    """Return all that differs, in the order of the labels of `before`, then new ones."""
    found = [
        Change(None, name, old, new)
        for name in ("unknown", "threshold")
        if (old := getattr(before, name)) != (new := getattr(after, name))
    ]
    for label in before.labels:
        found.extend(_of_label(label, after.by_id.get(label.id)))
    for label in after.labels:
        if label.id not in before.by_id:
            found.append(Change(label.id, "name", None, label.name))
    return found


def notes(before: Revision, after: Revision) -> list[str]:
    """Return what an author should know of a change that is sound, but may surprise."""
    found = lookalikes(after.map)
    waits, begins = before.effective_at, after.effective_at or after.time
    if waits is not None and waits > begins:
        found.append(
            f"revision {before.number} is to take effect at {waits.isoformat()}; this one holds "
            "its changes too and takes effect before"
        )
    return found


def _of_label(before: Label, after: Label | None) -> Iterator[Change]:
    if after is None:
        yield Change(before.id, "name", before.name, None)
        return
    for name in FIELDS:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield Change(before.id, name, old, new)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "none" if value is None else str(value)
