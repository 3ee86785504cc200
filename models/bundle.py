"""Publish and open model bundles: the only thing that crosses from training to serving.

A bundle is `<store>/<name>/<version>/`. Publishing creates every artifact only-if-absent and the
manifest last, so half an upload is invisible, a version is never overwritten, and two publishers
get two versions. Opening verifies the size and SHA-256 of each artifact it loads, through a local
cache that any number of processes may share.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from models.errors import (
    AccessError,
    AlreadyExistsError,
    BundleError,
    DigestError,
    NotFoundError,
    StorageError,
)
from models.manifest import Artifact, Manifest, check_name, dump_manifest, parse_manifest
from models.stopwatch import part
from models.storage import Store, is_remote, open_store
from models.storage_errors import is_disk_full

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CHUNK = 1 << 20
MAX_VERSION_RACES = 100
KNOWN_SECONDS = 5.0  # for the store to send a manifest that is in the cache


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its manifest, and its artifacts on demand."""

    uri: str
    manifest: Manifest
    cache: Path

    def path(self, artifact_path: str) -> Path:
        """Return a verified local copy of one artifact, fetching it at first use.

        Raises `ManifestError` if the bundle has none of that name and `DigestError` if its bytes
        are not what the manifest says.
        """
        artifact = self.manifest.artifact(artifact_path)
        with part("artifacts"):
            return _fetch(open_store(self.uri), artifact, self.cache)


@dataclass(frozen=True)
class Published:
    """Where a bundle was published."""

    uri: str
    manifest: Manifest


def default_cache() -> Path:
    """Return the cache folder: `SIGHTLINE_CACHE`, else `sightline` in the user's cache folder."""
    configured = os.environ.get("SIGHTLINE_CACHE")
    if configured:
        return Path(configured).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sightline"


def describe_file(path: Path, **fields: object) -> Artifact:
    """Return the artifact entry of a local file: name, size and SHA-256, plus the fields given."""
    return Artifact.model_validate(
        {"path": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path), **fields}
    )


def publish(store_uri: str | Path, manifest: Manifest, folder: Path) -> Published:
    """Publish the artifacts that the manifest lists, from `folder`, under the next free version.

    The version in `manifest` is replaced by the one found free. Raises `BundleError` when a file
    does not match its entry (before anything is written) and `StorageError` when the store fails;
    then no version appears.
    """
    check_name(manifest.name)
    for artifact in manifest.artifacts:
        _verify(folder / artifact.path, artifact, f"draft {folder}")
    models = open_store(store_uri)
    for _ in range(MAX_VERSION_RACES):
        version = max(_claimed_versions(models, manifest.name), default=0) + 1
        published = _publish_as(models, manifest.model_copy(update={"version": version}), folder)
        if published is not None:
            return published
    raise BundleError(
        f"cannot publish {manifest.name} to {store_uri}: {MAX_VERSION_RACES} versions in a row "
        "were taken by other "
        "publishers"
    )


def open_bundle(uri: str | Path, cache: Path | None = None) -> Bundle:
    """Open the bundle at `<store>/<name>/<version>`.

    Reads the manifest only; artifacts come when asked for. Raises `NotFoundError` for a version
    that does not exist or was never completed, naming the versions there are, and `ManifestError`
    for a manifest that cannot be read.

    A bucket that does not answer is no obstacle where the manifest was read before: it never
    changes, and the artifacts in the cache are those that it names, or are fetched. One that takes
    connections and says nothing is then waited for `KNOWN_SECONDS`.
    """
    store, cache = open_store(uri), cache or default_cache()
    known = cache / "manifests" / hashlib.sha256(store.uri.encode()).hexdigest()
    try:
        data = _read_soon(store) if known.is_file() else store.read(MANIFEST)
    except NotFoundError as error:
        raise NotFoundError(_explain_missing(store)) from error
    except AccessError:
        raise
    except StorageError as error:
        if not known.is_file():
            raise
        logger.warning("opening %s as it was read before: %s", store.uri, error)
        data = known.read_bytes()
    else:
        if is_remote(store.uri):
            _remember(data, known)
    manifest = parse_manifest(data, f"{store.uri}/{MANIFEST}")
    return Bundle(store.uri, manifest, cache)


def list_versions(store_uri: str | Path, name: str) -> list[int]:
    """Return the published versions of a model, ascending; half-written ones are not among them."""
    models = open_store(store_uri)
    return [
        version
        for version in sorted(_claimed_versions(models, name))
        if models.exists(f"{name}/{version}/{MANIFEST}")
    ]


def newest_version(store_uri: str | Path, name: str) -> int:
    """Return the highest published version, or raise `NotFoundError`."""
    versions = list_versions(store_uri, name)
    if not versions:
        raise NotFoundError(
            f"no published version of model {name!r} in {open_store(store_uri).uri}; train one "
            "first"
        )
    return versions[-1]


def newest_model(store_uri: str | Path) -> str:
    """Return the name of the model that was published last; raises `NotFoundError` if none was."""
    store = open_store(store_uri)
    names, _ = store.list_children()
    published = [
        (open_bundle(f"{store.uri}/{name}/{version}").manifest.created, name)
        for name in names
        for version in list_versions(store.uri, name)[-1:]
    ]
    if not published:
        raise NotFoundError(f"no published model in {store.uri}; train one first")
    return max(published)[1]


def _read_soon(store: Store) -> bytes:
    """Return the manifest, or raise `StorageError` when it does not come soon."""
    reading: Future[bytes] = Future()

    def read() -> None:
        try:
            reading.set_result(store.read(MANIFEST))
        except Exception as error:  # for who waits
            reading.set_exception(error)

    # Not in a pool, for which the process would wait when it ends.
    threading.Thread(target=read, name="manifest", daemon=True).start()
    try:
        return reading.result(KNOWN_SECONDS)
    except TimeoutError as error:
        raise StorageError(
            f"cannot read {store.uri}/{MANIFEST}: no answer within {KNOWN_SECONDS:g} s"
        ) from error


def _remember(data: bytes, path: Path) -> None:
    """Keep a copy for when the store does not answer; a disk that takes none is told of later, by
    the artifacts.
    """
    with suppress(OSError):
        if path.is_file() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f"{path.name}.{os.getpid()}")
        written.write_bytes(data)
        written.replace(path)


def _publish_as(models: Store, manifest: Manifest, folder: Path) -> Published | None:
    """Publish under one version; None if somebody else has it."""
    target = models.child(f"{manifest.name}/{manifest.version}")
    for position, artifact in enumerate(manifest.artifacts):
        try:
            target.create(artifact.path, (folder / artifact.path).read_bytes())
        except AlreadyExistsError:
            if position == 0:  # the first artifact is the claim on the version
                return None
            raise
    try:
        target.create(MANIFEST, dump_manifest(manifest))
    except AlreadyExistsError:
        return None
    return Published(target.uri, manifest)


def _claimed_versions(models: Store, name: str) -> list[int]:
    """Return every version number that has any file, complete or not."""
    try:
        folders, _ = models.list_children(name)
    except NotFoundError:
        return []
    return [int(folder) for folder in folders if folder.isdecimal() and int(folder) > 0]


def _explain_missing(store: Store) -> str:
    parent, _, version = store.uri.rpartition("/")
    models, _, name = parent.rpartition("/")
    try:
        versions, own = list_versions(models, name), list_versions(parent, version)
    except StorageError:
        versions = own = []
    if own:
        newest = f"{store.uri}/{own[-1]}"
        return f"no bundle at {store.uri}: it holds the versions of a model; give one, as {newest}"
    if not versions:
        return (
            f"no bundle at {store.uri}: there is no {MANIFEST}, nor any other version of {name!r} "
            "beside it. "
            "Train and publish one, or correct the URI (<store>/<name>/<version>)"
        )
    found = ", ".join(map(str, versions))
    missing = f"version {version!r} of {name!r} is not published"
    return f"no bundle at {store.uri}: {missing}; there are {found}"


def _fetch(store: Store, artifact: Artifact, cache: Path) -> Path:
    folder = cache / artifact.sha256
    target = folder / artifact.path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if target.is_file() and _is_whole(target, artifact):
                return target
            _download(store, artifact, folder, target)
    except OSError as error:
        full = " (the disk is full)" if is_disk_full(error) else ""
        raise StorageError(
            f"cannot cache {store.uri}/{artifact.path} in {cache}: {error}{full}; free space, or "
            "set SIGHTLINE_CACHE "
            "to another folder"
        ) from error
    return target


def _download(store: Store, artifact: Artifact, folder: Path, target: Path) -> None:
    handle, name = tempfile.mkstemp(dir=folder, prefix=".part-")
    os.close(handle)
    fetched = Path(name)
    try:
        store.download(artifact.path, fetched)
        _verify(fetched, artifact, f"{store.uri}/{artifact.path}")
        fetched.replace(target)
    finally:
        fetched.unlink(missing_ok=True)
    logger.info("cached %s/%s (%d bytes)", store.uri, artifact.path, artifact.bytes)


def _verify(path: Path, artifact: Artifact, thing: str) -> None:
    if not path.is_file():
        raise BundleError(f"{thing}: the file {artifact.path!r} that the manifest lists is missing")
    size = path.stat().st_size
    if size != artifact.bytes:
        raise DigestError(f"{thing}: {size:,} bytes, but the manifest says {artifact.bytes:,}")
    digest = _sha256(path)
    if digest != artifact.sha256:
        raise DigestError(
            f"{thing}: SHA-256 {digest}, but the manifest says {artifact.sha256}; the file was "
            "changed after it was "
            "published. Publish the model again"
        )


def _is_whole(path: Path, artifact: Artifact) -> bool:
    whole = path.stat().st_size == artifact.bytes and _sha256(path) == artifact.sha256
    if not whole:
        logger.warning("cached %s is damaged; fetching it again", path)
    return whole


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel releases if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
