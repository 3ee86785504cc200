"""How a label map is changed: edits as data, applied together, all or none.

The command line and the HTTP calls send the same edits. Labels are named by id, name or alias *of
the map that the edits start from*, so two names can be swapped in one go. Every edit that cannot be
done is reported, not only the first.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.errors import EditError, LabelMapError
from models.label_map import Label, LabelMap, check_map, survivor
from models.labels import OutputClass, fold


class _Edit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rename(_Edit):
    """Give a label another name; the old one becomes an alias where `keep_alias` says so."""

    op: Literal["rename"] = "rename"
    label: str
    name: str
    keep_alias: bool = False


class Merge(_Edit):
    """Let one label gather what others gathered; those are retired. Probabilities add up."""

    op: Literal["merge"] = "merge"
    labels: tuple[str, ...] = Field(min_length=1)
    into: str


class SplitBack(_Edit):
    """Give a merged label back what it had gathered."""

    op: Literal["split-back"] = "split-back"
    label: str


class Hide(_Edit):
    """Answer `unknown` where this label wins."""

    op: Literal["hide"] = "hide"
    label: str


class Restore(_Edit):
    """Show a hidden label again."""

    op: Literal["restore"] = "restore"
    label: str


class Alias(_Edit):
    """Add other names of a label, or remove them."""

    op: Literal["alias"] = "alias"
    label: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


class SetThreshold(_Edit):
    """Set the probability below which the answer is `unknown`: of one label, or of all that have
    none of their own. None goes back to that of the map.
    """

    op: Literal["set-threshold"] = "set-threshold"
    label: str | None = None
    threshold: float | None = Field(ge=0, le=1)


Edit = Annotated[
    Rename | Merge | SplitBack | Hide | Restore | Alias | SetThreshold, Field(discriminator="op")
]
_EDITS: TypeAdapter[tuple[Edit, ...]] = TypeAdapter(tuple[Edit, ...])
OPERATIONS = ("rename", "merge", "split-back", "hide", "restore", "alias", "set-threshold")


def parse_edits(value: object) -> tuple[Edit, ...]:
    """Read edits from JSON values. Raises `EditError` with what is wrong with each."""
    try:
        return _EDITS.validate_python(value)
    except ValidationError as error:
        wrong: dict[int, str] = {}
        for item in error.errors():
            position = item["loc"][0] if item["loc"] else 0
            place = ".".join(map(str, item["loc"][2:]))
            message = f"{place}: {item['msg']}" if place else item["msg"]
            wrong.setdefault(position if isinstance(position, int) else 0, message)
        raise EditError(wrong) from error


def apply_edits(base: LabelMap, edits: Sequence[Edit], classes: Sequence[OutputClass]) -> LabelMap:
    """Return the map after all edits, in their order.

    Raises `EditError` with the edits that cannot be done, and `LabelMapError` where each can but
    the outcome is no sound map, or is the map as it was.
    """
    draft = _Draft(base)
    wrong: dict[int, str] = {}
    for position, edit in enumerate(edits):
        try:
            APPLY[edit.op](draft, edit)
        except LabelMapError as error:
            wrong[position] = str(error)
    if wrong:
        raise EditError(wrong)
    changed = draft.finished()
    check_map(changed, classes)
    if changed == base:
        raise LabelMapError("the edits change nothing")
    return changed


class _Draft:
    """The labels while they are being edited."""

    def __init__(self, base: LabelMap) -> None:
        self.base = base
        self.labels = dict(base.by_id)
        self.threshold = base.threshold

    def find(self, word: str, *statuses: str) -> Label:
        """Return the label as it is by now, by a word of the base map."""
        try:
            found = self.labels[self.base.find(word).id]
        except LabelMapError:
            names = [name for each in self.base.labels for name in (each.name, *each.aliases)]
            folded = {fold(name): name for name in names}
            near = difflib.get_close_matches(fold(word), folded, n=1)
            hint = f"; did you mean {folded[near[0]]!r}?" if near else f"; there are {_some(names)}"
            raise LabelMapError(f"no label {word!r}{hint}") from None
        if found.status not in statuses:
            raise LabelMapError(
                f"label {found.name!r} is {found.status}; expected {' or '.join(statuses)}"
            )
        return found

    def change(self, label: Label, **changes: object) -> None:
        self.labels[label.id] = Label.model_validate({**label.model_dump(), **changes})

    def finished(self) -> LabelMap:
        return LabelMap(
            fingerprint=self.base.fingerprint,
            labels=tuple(self.labels.values()),
            unknown=self.base.unknown,
            threshold=self.threshold,
        )


def _rename(draft: _Draft, edit: Rename) -> None:
    label = draft.find(edit.label, "active", "hidden")
    aliases = [alias for alias in label.aliases if fold(alias) != fold(edit.name)]
    if edit.keep_alias and fold(label.name) != fold(edit.name):
        aliases.append(label.name)
    draft.change(label, name=_checked(edit.name), aliases=tuple(aliases))


def _merge(draft: _Draft, edit: Merge) -> None:
    into = draft.find(edit.into, "active", "hidden")
    for word in edit.labels:
        label = draft.find(word, "active", "hidden")
        if label.id == into.id:
            raise LabelMapError(f"label {label.name!r} cannot be merged into itself")
        into = draft.labels[into.id]
        draft.change(into, outputs=(*into.outputs, *label.outputs))
        draft.change(label, status="retired", merged_into=into.id)


def _split_back(draft: _Draft, edit: SplitBack) -> None:
    label = draft.find(edit.label, "retired")
    holder = survivor(draft.finished(), label)
    if holder is None:
        raise LabelMapError(f"label {label.name!r} leads to no label that holds its outputs")
    mine = [output for output in label.outputs if output in holder.outputs]
    rest = [output for output in holder.outputs if output not in mine]
    if not mine or not rest:
        raise LabelMapError(
            f"label {label.name!r} cannot be split from {holder.name!r}: "
            + ("its outputs went elsewhere" if not mine else "nothing would be left of that one")
        )
    draft.change(holder, outputs=tuple(rest))
    draft.change(label, status="active", merged_into=None, outputs=tuple(mine))


def _hide(draft: _Draft, edit: Hide) -> None:
    draft.change(draft.find(edit.label, "active"), status="hidden")


def _restore(draft: _Draft, edit: Restore) -> None:
    draft.change(draft.find(edit.label, "hidden"), status="active")


def _alias(draft: _Draft, edit: Alias) -> None:
    label = draft.find(edit.label, "active", "hidden")
    gone = set(map(fold, edit.remove))
    missing = gone - set(map(fold, label.aliases))
    if missing:
        raise LabelMapError(f"label {label.name!r} has no alias {_some(sorted(missing))}")
    kept = [alias for alias in label.aliases if fold(alias) not in gone]
    draft.change(label, aliases=(*kept, *map(_checked, edit.add)))


def _set_threshold(draft: _Draft, edit: SetThreshold) -> None:
    if edit.label is None:
        draft.threshold = edit.threshold or 0.0
    else:
        draft.change(draft.find(edit.label, "active", "hidden"), threshold=edit.threshold)


APPLY: Mapping[str, Callable[..., None]] = {
    "rename": _rename,
    "merge": _merge,
    "split-back": _split_back,
    "hide": _hide,
    "restore": _restore,
    "alias": _alias,
    "set-threshold": _set_threshold,
}


def _checked(name: str) -> str:
    if not 1 <= len(name) <= 200:
        raise LabelMapError(f"a name has 1 to 200 characters, got {len(name)}")
    return name


def _some(names: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more
