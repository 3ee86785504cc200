"""The right to write one output, held by one run at a time, on any store.

A lease is an object `lock-<number>.json`, created only if absent, that its holder writes anew every
few seconds. Whoever finds the holder dead (its process is gone, or nothing was written for a
while), or done, creates the next number: the store lets only one do so. A holder that was only
asleep finds the higher number, or its own gone, and stops. No clocks are compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from models.errors import AlreadyExistsError, ConfigError, NotFoundError, StorageError
from models.storage import Store, is_remote, open_store

logger = logging.getLogger(__name__)

PREFIX = "lock-"
BEAT_SECONDS = 5.0
DEAD_SECONDS = 30.0  # without a beat
SECONDS_BETWEEN = 0.5  # attempts at a lease that another one holds


# Those that this process holds, by store and number: a full disk may keep what it has released from
# being noted there.
_held: set[tuple[str, int]] = set()


class Lease:
    """Held from `acquire` to `release`; a thread keeps it alive."""

    def __init__(self, store: Store, number: int, holder: dict[str, Any]) -> None:
        self.number = number
        self._store = store
        self._holder = holder
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `ConfigError` when another run has taken over."""
        if self._is_lost:
            raise ConfigError(
                f"another run has taken over the results in {self._store.uri}, because this one "
                "gave no sign of life; this one stops"
            )

    def release(self, *, forget: bool) -> None:
        """Let others have it; `forget` where nothing is left in the folder that they could want."""
        self._ended.set()
        self._thread.join()
        _held.discard(_identity(self._store, self.number))
        if self._is_lost:
            return
        with suppress(StorageError):  # then it dies by itself, a little later
            if forget:
                self._store.delete(_key(self.number))
            else:  # numbers go on rising, for whoever sleeps with a lower one
                self._store.write(_key(self.number), _body({**self._holder, "released": True}, 0))

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                if max(_numbers(self._store), default=0) != self.number:
                    self._is_lost = True
                    return
                self._store.write(_key(self.number), _body(self._holder, beat))
            except StorageError as error:  # the next beat may find the store back
                logger.warning("cannot keep hold of %s: %s", self._store.uri, error)


def acquire(store: Store, option: str) -> Lease:
    """Take the lease of a folder, or raise `ConfigError` when a living run holds it; its message
    advises to give another `option`, by which the user chose the output.
    """
    numbers = _numbers(store)
    newest = max(numbers, default=0)
    if newest and not _is_dead(store, newest):
        raise _refusal(store, newest, option)
    holder, identity = _this_process(), _identity(store, newest + 1)
    is_new = identity not in _held
    _held.add(identity)  # before others can see it and ask
    try:
        store.create(_key(newest + 1), _body(holder, 0))
        for number in numbers:
            store.delete(_key(number))
    except StorageError as error:
        if is_new:
            _held.discard(identity)
        if isinstance(error, AlreadyExistsError):
            raise _refusal(store, newest + 1, option) from error
        raise
    return Lease(store, newest + 1, holder)


def _identity(store: Store, number: int) -> tuple[str, int]:
    """Return what stands for a lease in this process, however its store is spelled."""
    uri = store.uri
    return (uri.replace("s3a://", "s3://") if is_remote(uri) else os.path.realpath(uri)), number


def _is_dead(store: Store, number: int) -> bool:
    """Say whether the holder is dead: at once where it ran on this machine, else by watching."""
    first = _read(store, number)
    if first is None or first.get("released"):
        return True
    here = _this_process()
    if first == {**first, **here}:  # this very process
        return _identity(store, number) not in _held
    if all(first.get(name) == here[name] for name in ("host", "boot", "processes")):
        return not _is_alive(int(first["pid"]), float(first["started"]))
    logger.warning(
        "another run (process %s on %s) holds %s; watching for %g s whether it is alive",
        *(first.get("pid"), first.get("host"), store.uri, DEAD_SECONDS),
    )
    deadline = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, DEAD_SECONDS / 10))
        if _read(store, number) != first:
            return False
    return True


def _is_alive(pid: int, started: float) -> bool:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1.0
        )
    return False


def _this_process() -> dict[str, Any]:
    processes = boot = ""
    # Machines and containers may share a host name. The number of a boot is of one machine alone,
    # and process numbers mean the same in one namespace only.
    with suppress(OSError):
        processes = os.readlink("/proc/self/ns/pid")
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "host": socket.gethostname(),
        "boot": boot,
        "processes": processes,
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def _refusal(store: Store, number: int, option: str) -> ConfigError:
    holder = _read(store, number) or {}
    return ConfigError(
        f"another run (process {holder.get('pid')} on {holder.get('host')}) is writing this output "
        f"now, in {store.uri}; wait for it, end it, or give another {option}"
    )


@contextmanager
def holding(runs: str, folder: str, option: str, patience_seconds: float = 0.0) -> Iterator[Lease]:
    """Hold a folder below the runs. Raises `ConfigError`, with the advice to give another `option`,
    when somebody else holds it, and still does after so many seconds.
    """
    store = open_store(runs).child(f"{folder}/lock")
    if not is_remote(store.uri):
        Path(store.uri).mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            lease = acquire(store, option)
            break
        except ConfigError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(SECONDS_BETWEEN)
    try:
        yield lease
    finally:
        lease.release(forget=True)
        if not is_remote(store.uri):
            with suppress(OSError):  # another one may have begun in it
                Path(store.uri).rmdir()


def _numbers(store: Store) -> list[int]:
    names = (entry.key.rpartition("/")[2] for entry in store.list_children()[1])
    texts = (
        name.removeprefix(PREFIX).removesuffix(".json") for name in names if name.startswith(PREFIX)
    )
    return sorted(int(text) for text in texts if text.isdecimal())


def _key(number: int) -> str:
    return f"{PREFIX}{number:06}.json"


def _body(holder: dict[str, Any], beat: int) -> bytes:
    return json.dumps({**holder, "beat": beat}).encode()


def _read(store: Store, number: int) -> dict[str, Any] | None:
    """Return what a lease says, or None where it is gone, or was never written whole. A store that
    does not answer raises: that is no sign of a dead holder.
    """
    try:
        value = json.loads(store.read(_key(number)))
    except (NotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
