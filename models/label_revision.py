"""One revision of a label map, and who writes it: values that never change. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from models.label_edits import Edit
from models.label_map import LabelMap, identity_map
from models.labels import OutputClass

# What a write asks for: edits, a whole map, or the number of the revision to go back to.
Change = Sequence[Edit] | LabelMap | int


class Revision(BaseModel):
    """One state of the map, with who made it, when and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    model: str
    number: int = Field(ge=0)
    parent: int = Field(ge=0)
    author: str = Field(max_length=200)
    key: str = Field("", max_length=200)  # the access key that it was written with, by name
    reason: str = Field(max_length=2000)
    time: AwareDatetime
    effective_at: AwareDatetime | None = None
    request_key: str = Field("", max_length=200)  # the same for a write that is sent again
    edits: tuple[dict[str, Any], ...] = ()  # what was asked
    map: LabelMap


@dataclass(frozen=True)
class Author:
    """Who writes, and why; `request_key` makes a write that is sent again the same write."""

    name: str
    reason: str
    request_key: str = ""
    effective_at: datetime | None = None
    key: str = ""


def first_revision(model: str, classes: Sequence[OutputClass]) -> Revision:
    """Return revision 0, which is stored nowhere: the model's own classes."""
    return Revision(
        model=model,
        number=0,
        parent=0,
        author="",
        reason="the model's own classes",
        time=datetime.fromtimestamp(0, UTC),
        map=identity_map(classes),
    )


def asked(change: Change) -> tuple[dict[str, Any], ...]:
    """Return what a change asks for, as it stands in a revision."""
    if isinstance(change, LabelMap):
        return ({"op": "publish"},)
    if isinstance(change, int):
        return ({"op": "rollback", "revision": change},)
    return tuple(edit.model_dump(mode="json") for edit in change)
