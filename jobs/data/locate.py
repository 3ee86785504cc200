"""From an image's full path to its bytes, and from what a manifest says to the full path.

One storage client per bucket (or for the local disk) serves all images, however many folders they
lie in.
"""

from __future__ import annotations

import posixpath

from models.storage import Store, is_remote, normalise_uri


def absolute(folder: str, path: str) -> str:
    """Return the full path of a manifest's entry: a URI or an absolute path stays, else it is
    relative to `folder`.
    """
    if "://" in path:
        return normalise_uri(path)
    # Manifests written on Windows; no image name on a bucket has a backslash on purpose.
    path = path.replace("\\", "/")
    if is_remote(folder):
        scheme, _, rest = folder.partition("://")
        bucket, _, prefix = rest.partition("/")
        key = posixpath.normpath(posixpath.join("/" + prefix, path.lstrip("/"))).lstrip("/")
        return f"{scheme}://{bucket}/{key}"
    return posixpath.normpath(posixpath.join(folder, path))


def read_image(path: str) -> bytes:
    """Return the bytes of one image by its full path; raises `StorageError` and its children."""
    root, key = _split_at_root(path)
    return Store(root).read(key)


def _split_at_root(path: str) -> tuple[str, str]:
    scheme, separator, rest = path.partition("://")
    if not separator:
        return "/", path.lstrip("/")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key
