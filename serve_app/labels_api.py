"""The calls that show and change the label map of a model while it serves.

A write goes to the log first and is broadcast to all replicas then, so a replica that misses the
word still finds the revision there. A store that cannot keep two writers apart is found out before
the first write, and writes are refused with the reason. Scoring goes on whatever happens here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from models.errors import (
    AlreadyExistsError,
    EditError,
    LabelMapError,
    NotFoundError,
    RequestKeyError,
    StaleBaseError,
    StorageError,
)
from models.label_diff import differences, notes
from models.label_log import LabelLog
from models.label_map import Reading
from models.label_revision import Revision
from models.validation_outputs import load_outputs
from models.what_if import WhatIf, compare
from serve_app.errors import RequestError, bad_request
from serve_app.keys import ADMIN, Keys
from serve_app.label_body import Write, read_rollback, read_write
from serve_app.label_keeper import LabelKeeper
from serve_app.model import ServedModel
from serve_app.peers import Peers
from serve_app.queries import check_query, whole_number
from serve_app.replies import Reply, json_reply
from serve_app.request import Request
from serve_app.routing import Routes

STORE_THREADS = 4
STORE_SECONDS = 20.0  # for the store to answer a call
IN_DOUBT = (
    "; the change may be stored all the same: look at the revisions before you send it again, or "
    "send it with the same request_key"
)
DEFAULT_LISTED, MAX_LISTED = 50, 1000
REVISIONS = "/labels/revisions"

Result = TypeVar("Result")


def label_routes(model: ServedModel, keys: Keys, peers: Peers) -> Routes:
    """Return the calls; none for a model whose labels do not change."""
    if not isinstance(model.labels, LabelKeeper):
        return {}
    calls = _LabelCalls(model, model.labels, keys, peers)
    return {
        "/labels": {"GET": calls.get_labels, "PUT": calls.put_labels},
        "/labels/diff": {"GET": calls.get_diff},
        "/labels/rollback": {"POST": calls.post_rollback},
        REVISIONS: {"GET": calls.get_revisions},
        f"{REVISIONS}/*": {"GET": calls.get_revision},
    }


class _LabelCalls:
    def __init__(self, model: ServedModel, keeper: LabelKeeper, keys: Keys, peers: Peers) -> None:
        self._model, self._keeper, self._keys, self._peers = model, keeper, keys, peers
        self._log: LabelLog = keeper.log
        # Of its own, so that a store that does not answer takes no thread from anything else.
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="label-calls")

    async def get_labels(self, request: Request) -> Reply:
        check_query(request.query, ())
        reading = self._keeper.current()
        try:
            head, revision, problem = await self._in_thread(self._newest)
        except RequestError as error:  # a store that does not answer: what this replica has
            head, revision, problem = reading.revision, None, str(error)
        number = reading.revision if revision is None else revision.number
        # A change is made on the newest revision, also where that has no map for this model.
        body = {
            "model": self._model.manifest.name,
            "revision": head,
            "map_revision": number,
            "in_effect": self._keeper.current().revision,
            **({} if revision is None else _about(revision)),
            "problem": problem,
            "map": (reading.label_map if revision is None else revision.map).model_dump(),
        }
        return json_reply(body, headers={"ETag": f'"{head}"'})

    async def put_labels(self, request: Request) -> Reply:
        key = self._keys.require(request.headers, ADMIN)
        return await self._answer(await _told(read_write(request, key)))

    async def post_rollback(self, request: Request) -> Reply:
        key = self._keys.require(request.headers, ADMIN)
        return await self._answer(await _told(read_rollback(request, key)))

    async def get_revisions(self, request: Request) -> Reply:
        check_query(request.query, ("limit",))
        limit = whole_number(request.query, "limit", least=1, most=MAX_LISTED)

        def read() -> list[dict[str, Any]]:
            self._newest()
            return [
                {"number": number, "error": str(entry)}
                if isinstance(entry, LabelMapError)
                else _listed(entry)
                for number, entry in islice(self._log.history(), limit or DEFAULT_LISTED)
            ]

        listed = await self._in_thread(read)
        return json_reply({"model": self._model.manifest.name, "revisions": listed})

    async def get_revision(self, request: Request) -> Reply:
        check_query(request.query, ())
        word = request.scope["path"].rstrip("/").rpartition("/")[2]
        if not word.isascii() or not word.isdecimal() or len(word) > 12:
            raise bad_request(f"a revision is a number, got {word[:50]!r}", "bad_parameter")
        revision = await self._in_thread(lambda: self._log.read(int(word)))
        return json_reply({**_listed(revision), "map": revision.map.model_dump()})

    async def get_diff(self, request: Request) -> Reply:
        check_query(request.query, ("since", "to"))
        to = whole_number(request.query, "to")
        since = whole_number(request.query, "since")

        def read() -> tuple[Revision, Revision]:
            after = self._log.read(to) if to is not None else self._newest()[1]
            before = max(0, after.number - 1) if since is None else since
            return self._log.read(before), after

        before, after = await self._in_thread(read)
        body = {"model": self._model.manifest.name, "since": before.number, "to": after.number}
        return json_reply({**body, "changes": _changes(before, after)})

    async def _answer(self, write: Write) -> Reply:
        doubt = "" if write.is_dry_run else IN_DOUBT
        body = await self._in_thread(lambda: self._carry_out(write), doubt)
        if not write.is_dry_run:
            told = await self._peers.refresh_labels(body["revision"])
            body["replicas"] = {"asked": told.asked, "confirmed": told.confirmed}
        return json_reply(body, headers={"ETag": f'"{body["revision"]}"'})

    def _carry_out(self, write: Write) -> dict[str, Any]:
        self._newest()  # tells a bucket that is not there from a revision that is not
        if write.is_dry_run:
            made = self._log.draft(write.change, write.author, write.base)
        else:
            self._keeper.check_writes()
            made = self._log.write(write.change, write.author, write.base)
        try:
            before, _ = self._log.newest_sound(made.parent)
        except StorageError as error:
            if write.is_dry_run:
                raise
            return self._stored(made, [f"what it changed cannot be told now: {error}"])
        body: dict[str, Any] = {
            "model": self._model.manifest.name,
            "revision": made.parent if write.is_dry_run else made.number,
            "base": made.parent,
            "dry_run": write.is_dry_run,
            "changes": _changes(before, made),
            "notes": notes(before, made),
        }
        if write.is_dry_run:
            body["what_if"] = self._what_if(before, made)
        return body

    def _stored(self, made: Revision, told: list[str]) -> dict[str, Any]:
        """Return the answer about a revision that is stored, whatever else fails."""
        return {
            "model": self._model.manifest.name,
            "revision": made.number,
            "base": made.parent,
            "dry_run": False,
            "changes": [],
            "notes": told,
        }

    def _what_if(self, before: Revision, after: Revision) -> WhatIf | None:
        outputs = load_outputs(self._model.predictor.bundle)
        if outputs is None:
            return None
        return compare(outputs, *(self._reading(each) for each in (before, after)))

    def _reading(self, revision: Revision) -> Reading:
        return Reading(revision.map, self._log.classes, revision.number)

    def _newest(self) -> tuple[int, Revision, str]:
        """Return the newest number, the newest revision that can be used, and why it is another."""
        seen = self._keeper.newest  # before the log is asked, which may be further by then
        try:
            head = self._log.head()
        except NotFoundError as error:  # the bucket: no fault of who asks
            raise StorageError(str(error)) from error
        if head < seen:
            raise StorageError(
                f"{self._log.store.uri} is at revision {head}, but {seen} was seen there: it was "
                "emptied, or another store stands in its place"
            )
        return head, *self._log.newest_sound(head)

    async def _in_thread(self, work: Callable[[], Result], doubt: str = "") -> Result:
        """Do what reads or writes the store, off the event loop and not for ever; `doubt` is what
        to say besides where it takes too long.
        """
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.wait_for(working, STORE_SECONDS)
        except (LabelMapError, StorageError) as error:
            raise _refusal(error) from error
        except TimeoutError as error:
            raise RequestError(
                503,
                "label_store",
                f"the label store has not answered for {STORE_SECONDS:g} s{doubt}",
            ) from error


async def _told(reading: Awaitable[Write]) -> Write:
    """Await a body; edits and maps that are wrong are told as refusals."""
    try:
        return await reading
    except LabelMapError as error:
        raise _refusal(error) from error


# The first row that fits counts, so a subclass stands before its parent.
STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (StaleBaseError, 412, StaleBaseError.code),
    (RequestKeyError, 409, RequestKeyError.code),
    (EditError, 400, EditError.code),
    (LabelMapError, 400, LabelMapError.code),
    (AlreadyExistsError, 503, "label_store"),
    (NotFoundError, 404, NotFoundError.code),
    (StorageError, 503, "label_store"),
)


def _refusal(error: LabelMapError | StorageError) -> RequestError:
    status, code = next((status, code) for kind, status, code in STATUS if isinstance(error, kind))
    details: dict[str, Any] = {}
    if isinstance(error, EditError):
        details["edits"] = [{"edit": at, "error": why} for at, why in error.reasons.items()]
    if isinstance(error, StaleBaseError):
        details["revision"] = error.current
    return RequestError(status, code, str(error), details=details)


def _about(revision: Revision) -> dict[str, Any]:
    return revision.model_dump(include={"author", "reason", "time", "effective_at"})


def _listed(revision: Revision) -> dict[str, Any]:
    names = {"number", "parent", "author", "key", "reason", "time", "effective_at", "edits"}
    return revision.model_dump(include=names)


def _changes(before: Revision, after: Revision) -> list[dict[str, Any]]:
    return [
        {**vars(change), "text": change.describe()} for change in differences(before.map, after.map)
    ]
