"""Where the label map of a model is kept: an append-only log of revisions, none of which ever
changes.

Revision 7 is one JSON object, `<label store>/<model>/000007.json`, created only if absent; the live
map is the highest number. So two editors can never overwrite each other, whoever is killed at
whatever point leaves a log that opens, and a rollback is one more revision. Revision 0 is not
stored: it is the map that the model begins with.

A fact one would get wrong: "write if absent" must be the store's own, atomic operation. A store
that takes such a write and replaces the object loses revisions, so `check_store` tries it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from models.errors import (
    AlreadyExistsError,
    LabelMapError,
    NotFoundError,
    RequestKeyError,
    StaleBaseError,
    StorageError,
)
from models.label_edits import apply_edits
from models.label_map import LabelMap, check_map
from models.label_revision import Author, Change, Revision, asked, first_revision
from models.labels import OutputClass
from models.storage import Store, is_remote, open_store

_KEY = re.compile(r"^(\d{6,})\.json$")
# How far back a write that is sent again is looked for: so many revisions, of so long.
RETRIES_SEEN, RETRIES_AGE = 100, timedelta(days=1)
NEAR = 20  # revisions below the newest that are asked for one by one
PROBE = ".create-probe"  # one name, so that writers who may not delete leave one object at most
MAX_RACES = 100  # tries of a write that names no base, while others write


@dataclass(frozen=True)
class LabelLog:
    """The log of one model."""

    store: Store  # its folder
    model: str
    classes: tuple[OutputClass, ...]

    def head(self) -> int:
        """Return the highest number there is, 0 without any. Raises `StorageError`."""
        return max(self._numbers(), default=0)

    def advance(self, known: int) -> int:
        """Return the highest number, given one that exists: one small request where nothing is
        new.
        """
        while self.store.exists(_key(known + 1)):
            known += 1
        return known

    def read(self, number: int) -> Revision:
        """Return a revision. Raises `NotFoundError`, or `LabelMapError` for one that cannot be read
        or is not of this model.
        """
        if number == 0:
            return first_revision(self.model, self.classes)
        data = self.store.read(_key(number))
        thing = f"{self.store.uri}/{_key(number)}"
        try:
            revision = Revision.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise LabelMapError(f"{thing} cannot be read: {place}: {first['msg']}") from error
        if (revision.model, revision.number) != (self.model, number):
            raise LabelMapError(
                f"{thing} says that it is revision {revision.number} of {revision.model!r}"
            )
        try:
            check_map(revision.map, self.classes)
        except LabelMapError as error:
            raise LabelMapError(f"{thing}: {error}") from error
        return revision

    def downwards(self, head: int, until: int = -1) -> Iterator[int]:
        """Yield the numbers from `head` down to that above `until`. Those far below come from a
        listing, so that a stray file with a huge number costs no million requests.
        """
        border = max(head - NEAR, until)
        yield from range(head, border, -1)
        if border > until:
            numbers = {0, *self._numbers()}
            yield from sorted((n for n in numbers if until < n <= border), reverse=True)

    def newest_sound(self, head: int) -> tuple[Revision, str]:
        """Return the newest revision up to `head` that can be used, and why newer ones cannot (""
        if it is the newest). Raises `StorageError` where the store does not answer.
        """
        problem = ""
        for number in self.downwards(head):
            try:
                return self.read(number), problem
            except (LabelMapError, NotFoundError) as error:
                problem = problem or str(error)
        raise AssertionError("revision 0 can always be read")

    def history(self) -> Iterator[tuple[int, Revision | LabelMapError]]:
        """Yield all revisions with their numbers, newest first; one that cannot be read as its
        error.
        """
        for number in (*sorted(self._numbers(), reverse=True), 0):
            try:
                yield number, self.read(number)
            except LabelMapError as error:
                yield number, error

    def draft(
        self, change: Change, author: Author, base: int | None = None, head: int | None = None
    ) -> Revision:
        """Return the revision that a change would make, which is not stored yet.

        `base` is the revision that the author has seen, the newest if None; `head` the newest, if
        it was looked for already. Raises `StaleBaseError`
        for an older one, what `apply_edits` raises, and `LabelMapError` for a whole map without a
        base: it could undo what somebody else has just done.
        """
        if not author.name.strip():
            raise LabelMapError("a revision needs an author: who changes the labels?")
        before, head = self._base(base, head)
        return Revision(
            model=self.model,
            number=head + 1,
            parent=head,
            author=author.name,
            key=author.key,
            reason=author.reason,
            time=datetime.now(UTC),
            effective_at=author.effective_at,
            request_key=author.request_key,
            edits=asked(change),
            map=self._changed(before.map, change, base),
        )

    def write(self, change: Change, author: Author, base: int | None = None) -> Revision:
        """Store a change as the next revision, and return it; a write that was sent before, by its
        request key, is returned as it is stored.

        Without a base the change is made on whatever is the newest. Raises what `draft` raises, and
        `RequestKeyError` where the request key was another write's.
        """
        for _ in range(MAX_RACES):
            # What was not sent before up to this number is made on it: a try that is stored
            # meanwhile takes the next number away.
            head = self.head()
            sent = self._sent(author, change, head)
            if sent is not None:
                return sent
            try:
                return self.append(self.draft(change, author, base, head))
            except StaleBaseError:
                sent = self._sent(author, change, self.head())  # by another try, since we looked
                if sent is not None:
                    return sent
                if base is not None:
                    raise
        raise self._stale(self.head())

    def append(self, revision: Revision) -> Revision:
        """Store a drafted revision. Raises `StaleBaseError` if somebody else was faster."""
        data = (revision.model_dump_json(indent=1) + "\n").encode()
        try:
            self.store.create(_key(revision.number), data)
        except AlreadyExistsError as error:
            raise self._stale(revision.parent) from error
        return revision

    def check_store(self) -> None:
        """Raise `StorageError` if the store does not keep an object from being created twice."""
        try:
            self.store.create(PROBE, b"1")
        except AlreadyExistsError:  # of a writer who may not delete, or has died
            return
        try:
            self.store.create(PROBE, b"2")
        except AlreadyExistsError:
            return
        finally:
            with suppress(StorageError):
                self.store.delete(PROBE)
        raise StorageError(
            f"{self.store.uri} creates an object that exists already: two writers could overwrite "
            "each other there, so label maps cannot be changed in it. Use a store with conditional "
            "writes"
        )

    def _base(self, base: int | None, head: int | None) -> tuple[Revision, int]:
        head = self.head() if head is None else head
        if base is not None and base != head:
            raise self._stale(base)
        return self.newest_sound(head)[0], head

    def _changed(self, before: LabelMap, change: Change, base: int | None) -> LabelMap:
        if not isinstance(change, LabelMap | int):
            return apply_edits(before, change, self.classes)
        if isinstance(change, LabelMap) and base is None:
            raise LabelMapError("a whole map needs its base: the revision that it was made from")
        label_map = self.read(change).map if isinstance(change, int) else change
        check_map(label_map, self.classes)
        _refuse_lost_ids(before, label_map)
        if label_map == before:
            raise LabelMapError("the map is that of the newest revision already")
        return label_map

    def _sent(self, author: Author, change: Change, head: int) -> Revision | None:
        """Return the stored revision of the same request, if it was sent before, up to `head`."""
        if not author.request_key:
            return None
        oldest = datetime.now(UTC) - RETRIES_AGE
        for number in range(head, max(0, head - RETRIES_SEEN), -1):
            try:
                stored = self.read(number)
            except (LabelMapError, NotFoundError):
                continue
            if stored.time < oldest:
                break
            if stored.request_key == author.request_key:
                if (stored.edits, stored.author) != (asked(change), author.name) or (
                    isinstance(change, LabelMap) and stored.map != change
                ):
                    raise RequestKeyError(
                        f"the request key {author.request_key!r} was used for another write, "
                        f"revision {number}"
                    )
                return stored
        return None

    def _stale(self, base: int) -> StaleBaseError:
        head = self.head()
        return StaleBaseError(
            f"the labels of {self.model!r} are at revision {head}, not at {base}: somebody else "
            "has "
            "changed them. Look at what is there now, and write again on that base",
            head,
        )

    def _numbers(self) -> list[int]:
        try:
            _, files = self.store.list_children()
        except NotFoundError:
            if is_remote(self.store.uri):  # there it is the bucket that does not exist
                raise
            return []
        names = (file.key.rsplit("/", 1)[-1] for file in files)
        return [int(match[1]) for match in map(_KEY.match, names) if match]


def open_log(label_store: str, model: str, classes: Sequence[OutputClass]) -> LabelLog:
    """Return the log of a model in a label store; nothing is read yet."""
    return LabelLog(open_store(label_store).child(model), model, tuple(classes))


def _refuse_lost_ids(before: LabelMap, after: LabelMap) -> None:
    """A label that has been in use stays in the map, if only as retired: its id is never reused."""
    lost = sorted(set(before.by_id) - set(after.by_id))
    if lost:
        raise LabelMapError(
            f"the new map leaves out label {', '.join(map(repr, lost))}; keep it, as retired if "
            "need be"
        )


def _key(number: int) -> str:
    return f"{number:06}.json"
