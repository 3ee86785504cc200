"""Files in a folder or a bucket, by URI: read, write, create-if-absent, list.

A thin layer over `obstore` that adds what the rest of Sightline needs: one spelling of URIs, our
errors with advice instead of a debug dump, and stores that can be pickled to other processes. It
knows nothing of images or bundles.

Credentials and the endpoint come from the variables that every S3 client reads:
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL` (and `GOOGLE_*`,
`AZURE_*`). They are read when a store is opened, never stored, never logged.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore import exceptions as upstream

from models.errors import ConfigError, NotFoundError, StorageError
from models.storage_errors import explained

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import BackoffConfig, ClientConfig, ObjectStore, RetryConfig

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
ASKING = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "GOOGLE_SERVICE_ACCOUNT",
)
LIST_CHUNK = 1000  # what one S3 list call returns
# What the library says, in its own words or with the status of the store, of a range that begins
# behind the end. A store that answers with the whole object instead is another case.
BEYOND_THE_END = ("InvalidRange", "Range Not Satisfiable", "status: 416")
PATIENCE = timedelta(minutes=3)
# The library draws each pause between the first one and `base` times the one before: with 2 they
# stay below a second, and a hundred attempts were over in 57 s. Only the time is to count.
NO_LIMIT = 100_000
SLOW_BACKOFF: BackoffConfig = {
    "init_backoff": timedelta(milliseconds=100),
    "max_backoff": timedelta(seconds=10),
    "base": 4.0,
}


@dataclass(frozen=True)
class Entry:
    """One object: its key below the store's URI, and its size in bytes."""

    key: str
    size: int


Children = tuple[list[str], list[Entry]]  # folder names, objects


@dataclass(frozen=True)
class Store:
    """A folder or a bucket prefix. Cheap to make and to pickle; the client behind it is per
    process.

    A patient one waits for minutes where a bucket does not answer or says that it is busy: for jobs
    that would lose an hour's work, not for what somebody waits for.
    """

    uri: str
    is_patient: bool = False

    def read(self, key: str) -> bytes:
        """Return the whole object. Raises `NotFoundError`, `AccessError` or `StorageError`."""
        with self._explained("read", key):
            return bytes(obstore.get(self._client(), key).bytes())

    def read_within(self, key: str, max_bytes: int) -> tuple[int, bytes]:
        """Return the object's size and its bytes: none of them where it is larger than
        `max_bytes`.
        """
        with self._explained("read", key):
            found = obstore.get(self._client(), key)
            size = int(found.meta["size"])
            return size, b"" if size > max_bytes else bytes(found.bytes())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes of the object from `start` on; fewer where it ends before that."""
        with self._explained("read", key):
            try:
                return bytes(obstore.get_range(self._client(), key, start=start, length=length))
            except upstream.GenericError as error:
                if not any(word in str(error) for word in BEYOND_THE_END):
                    raise
                return b""

    def open_stream(self, key: str) -> BinaryIO:
        """Return the object as a file to be read from one end to the other, and closed."""
        with self._explained("read", key):
            chunks = iter(obstore.get(self._client(), key).stream(min_chunk_size=1 << 20))
        return cast(BinaryIO, io.BufferedReader(_Chunks(self, key, chunks), 1 << 20))

    def open_seekable(self, key: str) -> BinaryIO:
        """Return the object as a file of which any part can be read, by ranges."""
        with self._explained("read", key):
            file = obstore.open_reader(self._client(), key, buffer_size=1 << 20)
        return cast(BinaryIO, io.BufferedReader(_Seekable(self, key, file), 1 << 20))

    def write(self, key: str, data: bytes) -> None:
        """Write the object whole, replacing what was there; readers see the old or the new
        bytes.
        """
        with self._explained("write", key):
            obstore.put(self._client(writing=True), key, data)

    def create(self, key: str, data: bytes) -> None:
        """Write the object only if it is absent, else raise `AlreadyExistsError`.

        This is the one atomic operation that publishing relies on. It is a single conditional PUT
        on S3, GCS and Azure, and a hard link on a local disk.
        """
        with self._explained("create", key):
            obstore.put(self._client(writing=True), key, data, mode="create", use_multipart=False)

    def delete(self, key: str) -> None:
        """Remove the object; one that is absent already is not an error."""
        try:
            with self._explained("delete", key):
                obstore.delete(self._client(), key)
        except NotFoundError:
            return

    def exists(self, key: str) -> bool:
        """Say whether the object is there. A refused key or a missing bucket still raises."""
        try:
            with self._explained("look up", key):
                obstore.head(self._client(), key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every object below `prefix`, page by page, so that millions need no memory."""
        with self._explained("list", prefix):
            client = self._client()
            for page in obstore.list(client, prefix or None, chunk_size=LIST_CHUNK):
                yield from _entries(page)

    def list_children(self, prefix: str = "") -> Children:
        """Return the folder names and the objects directly below `prefix`, both sorted."""
        with self._explained("list", prefix):
            result = obstore.list_with_delimiter(self._client(), prefix or None)
        folders = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in result["common_prefixes"])
        return folders, sorted(_entries(result["objects"]), key=lambda entry: entry.key)

    def child(self, key: str) -> Store:
        """Return the store one or more folders further down."""
        return Store(f"{self.uri.rstrip('/')}/{key.strip('/')}", self.is_patient)

    def download(self, key: str, path: Path) -> int:
        """Stream the object to a local file and return the number of bytes written."""
        size = 0
        with self._explained("read", key):
            chunks = iter(obstore.get(self._client(), key).stream(min_chunk_size=8 << 20))
        with path.open("wb") as file:  # whose errors are not the store's
            while True:
                with self._explained("read", key):
                    chunk = next(chunks, None)
                if chunk is None:
                    return size
                size += file.write(chunk)

    def upload(self, key: str, file: Path | BinaryIO) -> None:
        """Stream a local file, from where it stands if it is open, to the object, replacing what
        was there.
        """
        with self._explained("write", key):
            obstore.put(self._client(writing=True), key, file)

    def check_writable(self) -> None:
        """Raise what a later `write` would raise, by writing and removing a small object."""
        key = f".writable-{secrets.token_hex(8)}"
        self.write(key, b"")
        with suppress(StorageError):  # who may write may still not be allowed to delete
            self.delete(key)

    def patient(self) -> Store:
        """Return the same store as a patient one: for what has answered before."""
        return Store(self.uri, is_patient=True)

    def _client(self, *, writing: bool = False) -> ObjectStore:
        return _open_client(self.uri, writing, self.is_patient, _environment_key())

    def _explained(self, verb: str, key: str) -> AbstractContextManager[None]:
        return explained(self.uri, verb, key)


class _Chunks(io.RawIOBase):
    """The chunks of an object as a file."""

    def __init__(self, store: Store, key: str, chunks: Iterator[Any]) -> None:
        self._store, self._key, self._chunks = store, key, chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._store._explained("read", self._key):
            while not len(self._left):
                chunk = next(self._chunks, None)
                if chunk is None:
                    return 0
                self._left = memoryview(bytes(chunk))
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


class _Seekable(io.RawIOBase):
    """The library's reader as Python's own kind of file."""

    def __init__(self, store: Store, key: str, file: obstore.ReadableFile) -> None:
        self._store, self._key, self._file = store, key, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with self._store._explained("read", self._key):
            data = bytes(self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def _entries(found: Iterable[ObjectMeta]) -> Iterator[Entry]:
    for item in found:
        if item["path"]:  # else what a store's console puts in the place of an empty folder
            yield Entry(item["path"], item["size"])


def open_store(uri: str | Path, *, is_patient: bool = False) -> Store:
    """Return the store for a local path, `file://`, `s3://`, `gs://`, `az://` or `abfs://` URI.

    Nothing is contacted yet: a missing bucket shows at the first read, write or list.
    Raises `ConfigError` for a scheme that is not known.
    """
    return Store(normalise_uri(uri), is_patient)


def normalise_uri(uri: str | Path) -> str:
    """Return an absolute local path or a URI with its scheme, without a trailing slash."""
    text = str(uri)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return str(Path(text).expanduser().absolute())
    if scheme == "file":
        return str(Path(unquote(urlsplit(text).path)).absolute())
    if scheme not in REMOTE_SCHEMES:
        raise ConfigError(
            f"storage URI {text!r} has the unknown scheme {scheme!r}; "
            f"expected a local path, file:// or one of {', '.join(REMOTE_SCHEMES)}"
        )
    if not text.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            f"storage URI {text!r} names no bucket; expected {scheme}://bucket/folder"
        )
    return text.rstrip("/")


def split_uri(uri: str | Path) -> tuple[str, str]:
    """Split the URI of one object into the URI of its folder and its name."""
    parent, _, name = normalise_uri(uri).rpartition("/")
    return parent or "/", name


def read_uri(uri: str | Path) -> bytes:
    """Read one object by its full URI."""
    parent, name = split_uri(uri)
    return open_store(parent).read(name)


def is_remote(uri: str) -> bool:
    """Say whether a URI points to a bucket rather than to a local disk."""
    return "://" in uri and not uri.startswith("file://")


def _environment_key() -> str:
    # A client freezes the credentials that it was made with. Keying the cache by who asks, and
    # where, lets a process (a test, a notebook) change both without a stale client answering.
    return " ".join(os.environ.get(name, "") for name in ASKING)


@lru_cache(maxsize=64)
def _open_client(uri: str, writing: bool, is_patient: bool, _environment: str) -> ObjectStore:
    from obstore.store import LocalStore, from_url

    if not is_remote(uri):
        path = Path(uri)
        if not writing and not path.is_dir():
            raise NotFoundError(f"folder {uri} does not exist; check the path, or create it")
        return LocalStore(path, mkdir=writing)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    # Plain HTTP is refused by default; an endpoint that the operator wrote as http:// is meant so.
    client: ClientConfig = {"allow_http": True} if endpoint.startswith("http://") else {}
    # The library's own default retries for three minutes, which looks like a hang.
    retry: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
    if is_patient:
        retry = {"max_retries": NO_LIMIT, "retry_timeout": PATIENCE, "backoff": SLOW_BACKOFF}
    store: ObjectStore = from_url(_as_url(uri), client_options=client, retry_config=retry)
    return store


def _as_url(uri: str) -> str:
    """Return a URI with its prefix quoted: the library would cut it at `#` and `?`, and take `%20`
    for a space, and so work in another folder.
    """
    scheme, _, rest = uri.partition("://")
    bucket, slash, prefix = rest.partition("/")
    return f"{scheme}://{bucket}{slash}{quote(prefix)}"
