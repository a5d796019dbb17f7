"""Every error of the destination.

ArchiveError
├── BadArchiveUriError          bad_archive_uri          (also ValueError)
├── ContentConflictError        content_conflict
├── UnexpectedContentError      unexpected_content       retried
├── IntegrityError              integrity_failed         retried
│   ├── SourceCutError          source_cut               retried
│   ├── SourceChecksumError     source_checksum_mismatch retried
│   ├── SourceChangedError      source_changed           retried
│   └── StoredBytesDifferError  stored_bytes_differ      retried
├── DerivingError               deriving_failed
│   ├── AudioLibraryMissingError audio_library_missing
│   ├── ArchiveChangedError     archive_changed          retried
│   ├── AudioUnfitError         audio_unfit
│   └── DecodedDiffersError     decoded_differs
├── StoppedError                stopped                  retried
├── ManifestError
│   ├── ManifestConflictError   manifest_conflict
│   ├── ManifestInvalidError    manifest_invalid
│   └── ManifestVersionError    manifest_too_new
└── StorageError                storage_refused
    ├── AlreadyExistsError      already_exists
    ├── ObjectMissingError      object_missing
    ├── ConditionsIgnoredError  conditions_ignored
    ├── StorageDeniedError      storage_denied
    ├── NoSuchBucketError       no_such_bucket
    ├── WrongRegionError        wrong_region
    ├── StorageFullError        storage_full             retried
    ├── StorageUnavailableError storage_unavailable      retried
    └── UploadLostError         upload_lost              retried
"""

from __future__ import annotations

from include.errors import CodedError


class ArchiveError(CodedError):
    """Base of everything that the destination raises on purpose."""

    code = "archive_error"


class BadArchiveUriError(ArchiveError, ValueError):
    """The archive's address cannot be used as it stands."""

    code = "bad_archive_uri"


class ContentConflictError(ArchiveError):
    """Other bytes are already stored where this part belongs; they are left as they are."""

    code = "content_conflict"


class UnexpectedContentError(ArchiveError):
    """The source sent a text page where audio was due."""

    code = "unexpected_content"
    permanent = False


class IntegrityError(ArchiveError):
    """Bytes are not what they were promised to be."""

    code = "integrity_failed"
    permanent = False


class SourceCutError(IntegrityError):
    """The source's body ended before, or went on after, the length that it declared."""

    code = "source_cut"


class SourceChecksumError(IntegrityError):
    """The source's body does not match the checksum that it declared."""

    code = "source_checksum_mismatch"


class SourceChangedError(IntegrityError):
    """Two readings of one body gave different bytes."""

    code = "source_changed"


class StoredBytesDifferError(IntegrityError):
    """The store holds other bytes than it was given."""

    code = "stored_bytes_differ"


class DerivingError(ArchiveError):
    """Base of everything that is wrong with making audio from what is archived."""

    code = "deriving_failed"


class AudioLibraryMissingError(DerivingError):
    """The library that decodes and encodes audio is not installed."""

    code = "audio_library_missing"


class ArchiveChangedError(DerivingError):
    """What is archived of a recording changed while something was made of it, by a purge for example."""

    code = "archive_changed"
    permanent = False


class AudioUnfitError(DerivingError):
    """What is archived can't be made into what was asked for."""

    code = "audio_unfit"


class DecodedDiffersError(DerivingError):
    """What was encoded does not decode to what it was made from."""

    code = "decoded_differs"


class StoppedError(ArchiveError):
    """The copy was told to stop; nothing of it is visible, unless it was already whole."""

    code = "stopped"
    permanent = False


class ManifestError(ArchiveError):
    """Base of everything that is wrong with a manifest."""

    code = "manifest_error"


class ManifestConflictError(ManifestError):
    """A different manifest of the same recording is already stored; it is left as it is."""

    code = "manifest_conflict"


class ManifestInvalidError(ManifestError):
    """A manifest breaks its schema, or is not JSON."""

    code = "manifest_invalid"


class ManifestVersionError(ManifestError):
    """A manifest was written by a newer version of this project."""

    code = "manifest_too_new"


class StorageError(ArchiveError):
    """The store refused; the subclasses say why where that is known."""

    code = "storage_refused"


class AlreadyExistsError(StorageError):
    """The key is taken; nothing was written."""

    code = "already_exists"


class ObjectMissingError(StorageError):
    """There is no object under the key."""

    code = "object_missing"


class ConditionsIgnoredError(StorageError):
    """The store replaces objects although it was told not to, so nothing in it would be safe."""

    code = "conditions_ignored"


class StorageDeniedError(StorageError):
    """The store does not accept the credentials, or they lack a right."""

    code = "storage_denied"


class NoSuchBucketError(StorageError):
    """The bucket, or the archive's folder, does not exist."""

    code = "no_such_bucket"


class WrongRegionError(StorageError):
    """The bucket lives in another region than the client was made for."""

    code = "wrong_region"


class StorageFullError(StorageError):
    """No space, or a quota is used up."""

    code = "storage_full"
    permanent = False


class StorageUnavailableError(StorageError):
    """The store did not answer, or asked for patience."""

    code = "storage_unavailable"
    permanent = False


class UploadLostError(StorageError):
    """The unfinished upload is gone, most likely cleaned up by a later try; begin again."""

    code = "upload_lost"
    permanent = False
