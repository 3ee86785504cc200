"""Every error that Sightline raises on purpose, as one tree.

    SightlineError
    ├── ConfigError              a setting is unknown, contradictory or of the wrong type
    ├── DataError                a dataset cannot be trained on as it is
    ├── StorageError             a bucket or folder does not do what was asked
    │   ├── NotFoundError
    │   ├── AlreadyExistsError
    │   └── AccessError
    ├── BundleError              a model bundle cannot be published or opened
    │   ├── ManifestError
    │   ├── DigestError
    │   └── ProofError           an artifact does not reproduce its reference outputs
    ├── LabelMapError            a label map is not sound, or not of this model
    │   ├── EditError            edits that cannot be done, each with its reason
    │   ├── StaleBaseError       somebody else has changed the map meanwhile
    │   └── RequestKeyError      the key of one write was sent with another
    ├── EngineError              no engine can run a bundle here, or one failed
    ├── EndpointError            a served model does not answer, or refuses
    └── ImageError               one image cannot be used; the others can
        ├── ImageTypeError       not an image format we read
        ├── ImageTooLargeError   more bytes or pixels than the limit
        └── ImageDecodeError     an image file, but broken

A message names the thing, its value, what was expected and what to do. `code` is the word that
clients of the HTTP interface see in the `code` field, so it never changes.
"""

from __future__ import annotations

from collections.abc import Mapping


class SightlineError(Exception):
    """Base of all errors raised on purpose; anything else is a defect of ours."""

    code = "internal"


class ConfigError(SightlineError):
    """A setting is unknown, contradictory or of the wrong type."""

    code = "config"


class DataError(SightlineError):
    """A dataset cannot be used as it is: no images, one class, labels that clash."""

    code = "data"


class StorageError(SightlineError):
    """A bucket or folder does not do what was asked."""

    code = "storage"


class NotFoundError(StorageError):
    """The object, bucket or folder does not exist."""

    code = "not_found"


class AlreadyExistsError(StorageError):
    """The object exists and was to be created only if absent."""

    code = "already_exists"


class AccessError(StorageError):
    """The store refuses the credentials, or has none."""

    code = "access_denied"


class BundleError(SightlineError):
    """A model bundle cannot be published or opened."""

    code = "bundle"


class ManifestError(BundleError):
    """`manifest.json` is missing, malformed or contradicts itself."""

    code = "bundle_manifest"


class DigestError(BundleError):
    """An artifact's size or SHA-256 is not what the manifest says."""

    code = "bundle_digest"


class ProofError(BundleError):
    """An engine does not reproduce the reference outputs of the bundle."""

    code = "bundle_proof"


class LabelMapError(SightlineError):
    """A label map is not sound, or is not one of this model."""

    code = "label_map"


class EditError(LabelMapError):
    """Edits of a label map that cannot be done: `reasons` by their positions."""

    code = "label_edit"

    def __init__(self, reasons: Mapping[int, str]) -> None:
        self.reasons = dict(sorted(reasons.items()))
        super().__init__("; ".join(f"edit {n}: {why}" for n, why in self.reasons.items()))


class StaleBaseError(LabelMapError):
    """A write was based on a revision that is not the current one, which is `current`."""

    code = "stale_base"

    def __init__(self, message: str, current: int) -> None:
        self.current = current
        super().__init__(message)


class RequestKeyError(LabelMapError):
    """A write carries the request key of another write."""

    code = "request_key"


class EngineError(SightlineError):
    """No engine can run the bundle on this machine, or a run failed."""

    code = "engine"


class EndpointError(SightlineError):
    """A served model does not answer, or refuses to."""

    code = "endpoint"


class ImageError(SightlineError):
    """One image cannot be used. The other images of a batch are unaffected."""

    code = "image"


class ImageTypeError(ImageError):
    """The bytes are not in an image format that we read."""

    code = "image_type"


class ImageTooLargeError(ImageError):
    """The image has more bytes or pixels than the configured limit."""

    code = "image_too_large"


class ImageDecodeError(ImageError):
    """The bytes begin like an image but cannot be decoded: truncated or damaged."""

    code = "image_decode"
