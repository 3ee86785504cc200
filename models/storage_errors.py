"""What a store's library raises, as our errors: the object's whole URI, the cause and advice.

`obstore` sorts only a few causes by type; the others it gives as text, in front of a debug dump.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from obstore import exceptions as upstream

from models.errors import AccessError, AlreadyExistsError, NotFoundError, StorageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Some libraries give the words or the number of the system, as part of a text of their own.
DISK_FULL_WORDS = tuple(
    word for number in DISK_FULL for word in (os.strerror(number), f"(os error {number})")
)

# What the stores and the library say, each in its own words.
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
REFUSED = ("403 Forbidden", "401 Unauthorized", "AccessDenied", "Invalid Access Key")
NO_CREDENTIALS = (
    "169.254.169.254",
    "CredentialsProvider",
    "credential",
    "AccessKeyId",
    "Account must be specified",
)


@dataclass(frozen=True)
class _Provider:
    """What a kind of store calls things, and the variables that say who asks, and where."""

    container: str
    credentials: str
    place: str


_AZURE = _Provider(
    "container",
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_ACCOUNT_NAME",
)
PROVIDERS = {
    "gs": _Provider("bucket", "GOOGLE_SERVICE_ACCOUNT (the path of a key)", "project"),
    **dict.fromkeys(("az", "abfs", "abfss"), _AZURE),
}
S3 = _Provider(
    "bucket",
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    "AWS_REGION and AWS_ENDPOINT_URL",
)


@contextmanager
def explained(uri: str, verb: str, key: str) -> Iterator[None]:
    """Turn the library's exceptions into ours, with the URI of the object `key` of the store."""
    thing = f"{uri.rstrip('/')}/{key}" if key else uri
    try:
        yield
    except StorageError:
        raise
    except (upstream.AlreadyExistsError, upstream.PreconditionError, FileExistsError) as error:
        raise AlreadyExistsError(f"cannot {verb} {thing}: it exists already") from error
    except (FileNotFoundError, upstream.NotFoundError) as error:
        raise NotFoundError(_missing(uri, thing, verb, str(error))) from error
    except (
        upstream.PermissionDeniedError,
        upstream.UnauthenticatedError,
        PermissionError,
    ) as error:
        raise AccessError(_refused(uri, thing, verb)) from error
    except (upstream.BaseError, OSError, ValueError) as error:
        raise _sort_generic(uri, thing, verb, error) from error


def is_disk_full(error: Exception) -> bool:
    """Say whether a local disk or a user's share of it is full, by its number or its text."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return any(word in str(error) for word in DISK_FULL_WORDS)


def _missing(uri: str, thing: str, verb: str, detail: str) -> str:
    if not any(word in detail for word in NO_BUCKET):
        return f"cannot {verb} {thing}: there is no such object"
    provider = _provider(uri)
    name = urlsplit(uri).netloc.partition("@")[0]
    where = f" at {_endpoint()}" if provider is S3 else ""
    return (
        f"cannot {verb} {thing}: the {provider.container} {name!r} does not exist{where}; check "
        f"its name and {provider.place}"
    )


def _refused(uri: str, thing: str, verb: str) -> str:
    return (
        f"cannot {verb} {thing}: the store refused the credentials; check "
        f"{_provider(uri).credentials}, and that they may {verb} there"
    )


def _sort_generic(uri: str, thing: str, verb: str, error: Exception) -> StorageError:
    """Name the cause that the library only gives as text."""
    text = str(error)
    if is_disk_full(error):
        return StorageError(f"cannot {verb} {thing}: the disk is full; make room and try again")
    if any(word in text for word in NO_BUCKET):
        return NotFoundError(_missing(uri, thing, verb, text))
    if any(word in text for word in REFUSED):
        return AccessError(_refused(uri, thing, verb))
    if any(word in text for word in NO_CREDENTIALS):
        return AccessError(
            f"cannot {verb} {thing}: no credentials found; set {_provider(uri).credentials}"
        )
    return StorageError(f"cannot {verb} {thing}: {text.splitlines()[0] if text else repr(error)}")


def _provider(uri: str) -> _Provider:
    return PROVIDERS.get(urlsplit(uri).scheme, S3)


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL") or "the provider's default endpoint"
