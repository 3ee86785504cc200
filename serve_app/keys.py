"""Who may call: keys with scopes, from the environment or a mounted file that may change at any
time.

A line is `NAME SCOPES SHA256`: `line-4 infer 9f86d0...`. Only the digest of a key is kept anywhere.
Keys are long random words, not passwords, so one SHA-256 is enough and costs nothing per request.
`python -m serve_app.keys line-4 --scope infer` makes one.

Scoring is open until a key with the scope `infer` is configured, and never opens again while the
process lives: an emptied file locks callers out instead of letting everybody in. Admin calls are
closed until there is an admin key. It knows nothing of HTTP beyond the two headers it reads.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from models.errors import ConfigError
from serve_app.errors import RequestError
from serve_app.logs import OURS
from serve_app.trace import current

logger = logging.getLogger(OURS)

VARIABLE = "SIGHTLINE_KEYS"
INFER, ADMIN = "infer", "admin"
SCOPES = (INFER, ADMIN)
SECONDS_BETWEEN_LOOKS = 1.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Headers(Protocol):
    """What keys are read from; names are in lower case."""

    def get(self, name: str, /) -> str | None:
        """Return a header, or None."""
        ...


@dataclass(frozen=True)
class Key:
    """One key: who holds it, what it opens, and its SHA-256."""

    name: str
    scopes: frozenset[str]
    digest: str

    def opens(self, scope: str) -> bool:
        """Say whether the key has a scope; admin has them all."""
        return scope in self.scopes or ADMIN in self.scopes


def parse_keys(text: str, thing: str) -> tuple[Key, ...]:
    """Read keys, one per line or separated by `;`. Raises `ConfigError` naming the line."""
    keys: list[Key] = []
    for number, line in enumerate(text.replace(";", "\n").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{thing}, line {number}"
        if len(words) != 3 or not NAME.fullmatch(words[0]) or not DIGEST.fullmatch(words[2]):
            raise ConfigError(
                f"{where}: expected `NAME SCOPES SHA256`, as `python -m serve_app.keys NAME` "
                "prints it"
            )
        name, scopes = words[0], frozenset(words[1].split(","))
        unknown = sorted(scopes - set(SCOPES))
        if unknown:
            raise ConfigError(
                f"{where}: unknown scope {unknown[0]!r}; expected {' or '.join(SCOPES)}, or both "
                "with a comma"
            )
        keys.append(Key(name, scopes, words[2]))
    return tuple(keys)


class Keys:
    """The keys that count now. A file is looked at again every second, so a key can be added or
    withdrawn without a restart; one that cannot be read leaves the keys as they were.
    """

    def __init__(self, text: str = "", file: Path | None = None) -> None:
        """Raises `ConfigError` for keys that cannot be read."""
        self._fixed = parse_keys(text, VARIABLE)
        self._file, self._seen, self._problem = file, (0, 0, 0), ""
        self._keys = self._fixed
        self._is_closed = False
        self._looked_at = time.monotonic()
        if file is not None:
            try:
                self._read(file)
            except OSError as error:
                raise ConfigError(f"the keys file {file} cannot be read: {error}") from error
        self._close_if_keyed()

    def require(self, headers: Headers, scope: str) -> str:
        """Return the name of the key that a request needs and carries, or "" where it needs none.

        Raises `RequestError`: 401 without a known key, 403 without the scope, or where no key at
        all has the scope `admin`.
        """
        self._look_again()
        if scope == INFER and not self._is_closed:
            return ""
        given = _given(headers)
        key = None if given is None else self._find(given)
        if scope == ADMIN:
            self._check_admin_exists()
        if given is None:
            raise _unauthenticated("this call needs a key: send `Authorization: Bearer <key>`")
        if key is None:
            raise _unauthenticated("the key is not known here; it may have been withdrawn")
        if not key.opens(scope):
            raise RequestError(
                403, "forbidden", f"the key {key.name!r} has not the scope {scope!r}"
            )
        trace = current.get()
        if trace is not None:
            trace.key = key.name
        return key.name

    def _find(self, given: str) -> Key | None:
        digest = hashlib.sha256(given.encode()).hexdigest()
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def _check_admin_exists(self) -> None:
        if not any(ADMIN in key.scopes for key in self._keys):
            raise RequestError(
                403,
                "admin_closed",
                "no admin key is configured, so nothing can be changed here; make one with `python "
                f"-m serve_app.keys NAME --scope admin` and put its line into `keys_file` or "
                f"{VARIABLE}",
            )

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked_at < SECONDS_BETWEEN_LOOKS:
            return
        self._looked_at = now
        try:
            self._read(self._file)
            self._problem = ""
        except (OSError, ConfigError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                logger.error("keys stay as they were: %s", error)
        self._close_if_keyed()

    def _read(self, file: Path) -> None:
        state = file.stat()  # through links: a mounted secret changes by a link that is swapped
        seen = (state.st_mtime_ns, state.st_ino, state.st_size)
        if seen == self._seen:
            return
        try:
            keys = parse_keys(file.read_text(), str(file))
        except UnicodeDecodeError as error:
            raise ConfigError(f"the keys file {file} is no text: {error}") from error
        self._keys, self._seen = (*self._fixed, *keys), seen
        logger.info("keys: %s", ", ".join(key.name for key in self._keys) or "none")

    def _close_if_keyed(self) -> None:
        # A file without a key was emptied, or is still to be filled: whoever gave one meant keys.
        is_empty = self._file is not None and not self._keys
        is_keyed = any(INFER in key.scopes for key in self._keys)
        self._is_closed = self._is_closed or is_keyed or is_empty


def open_keys(file: str | None) -> Keys:
    """Return the keys of the environment and of a file, as they are now."""
    return Keys(os.environ.get(VARIABLE, ""), Path(file) if file else None)


def new_key(name: str, scopes: Sequence[str]) -> tuple[str, str]:
    """Return a new key and the line that admits it."""
    key = f"sl_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    line = f"{name} {','.join(scopes)} {digest}"
    parse_keys(line, "a new key")
    return key, line


def _given(headers: Headers) -> str | None:
    kind, _, word = (headers.get("authorization") or "").partition(" ")
    if kind.lower() == "bearer" and word.strip():
        return word.strip()
    return headers.get("x-api-key") or None


def _unauthenticated(message: str) -> RequestError:
    return RequestError(401, "unauthenticated", message, {"WWW-Authenticate": "Bearer"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a key: the key goes to standard error, its line to standard output, to be appended to
    the keys file.
    """
    parser = argparse.ArgumentParser(prog="python -m serve_app.keys", description=main.__doc__)
    parser.add_argument("name", help="who will hold it, as in line-4")
    parser.add_argument("--scope", action="append", choices=SCOPES, help=f"default: {INFER}")
    given = parser.parse_args(arguments)
    if not NAME.fullmatch(given.name):
        parser.error(f"name {given.name!r} must be 1 to 63 of A-Z, a-z, 0-9, '.', '_', '-'")
    key, line = new_key(given.name, given.scope or [INFER])
    print(f"the key, which is shown only now: {key}", file=sys.stderr)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
