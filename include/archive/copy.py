"""The engine: one body of the source into one object of the archive, whole and proven.

What is stored is the body as the source sent it, byte for byte; only headerless samples get a WAV header in front, so
that they can be played. A part counts as stored when its length was as declared (where it was), its declared
checksums matched, and the store proved that it holds what it was given.
"""

from __future__ import annotations

import hashlib
import random
import time
import zlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from include.archive.audio import (
    EXTENSIONS,
    SNIFF_BYTES,
    MediaKind,
    size_implausible,
    sniff,
    wav_header,
    wav_padding,
)
from include.archive.errors import (
    AlreadyExistsError,
    ContentConflictError,
    SourceChangedError,
    SourceChecksumError,
    SourceCutError,
    StoppedError,
    StoredBytesDifferError,
    UploadLostError,
)
from include.archive.layout import safe_id
from include.errors import CodedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from include.archive.audio import (
        PcmFormat,
    )
    from include.archive.stores import ObjectInfo, Store, Writer

BUFFER_BYTES = 1024 * 1024
"""Bytes that are read from the source at once, into one buffer that is used again and again."""

MAX_FUTILE_ATTEMPTS = 5
"""How often in a row the source may fail without getting further than before."""


class Body(Protocol):
    """A body being read. What is below ``offset`` was skipped."""

    @property
    def length(self) -> int | None:
        """Bytes of the whole body, where the source told."""
        ...

    @property
    def offset(self) -> int:
        """Where reading begins: what was asked for, or 0 when the source cannot do that."""
        ...

    @property
    def etag(self) -> str | None:
        """The source's strong version mark."""
        ...

    @property
    def content_type(self) -> str | None:
        """The content type, as sent."""
        ...

    @property
    def checksums(self) -> Mapping[str, str]:
        """Checksums of the whole body that the source declared: algorithm to hex."""
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Read some bytes; 0 at the end. Raises a CodedError that is not permanent when the body was cut."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Source(Protocol):
    """Something that can be opened again and again."""

    def open(self, offset: int = 0, if_match: str | None = None) -> Body:
        """Open the body at ``offset``, provided that its version mark still is ``if_match``."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """What became of one part.

    :param key: relative to the recording's folder.
    :param bytes: and ``sha256``: of the stored object.
    :param media_type: what the bytes are.
    :param source_format: the artifact's own format field, as given.
    :param source_bytes: and ``source_sha256``: of the body that the source sent.
    :param verified_by: why the object is believed to be whole: ``content-length`` or ``length_unverified``,
        ``source-checksum``, and one of ``store-checksum`` and ``read-back``.
    :param warnings: any of ``empty``, ``size_implausible``, ``odd_length``, ``pcm_format_assumed``,
        ``length_unverified``.
    :param pcm: rate, width and channels in the WAV header that was put in front; None where none was.
    :param action: ``stored`` or ``already_present``.
    :param transferred: bytes read from the source, repetitions included.
    """

    key: str
    bytes: int
    sha256: str
    media_type: str
    source_format: str | None
    source_bytes: int
    source_sha256: str
    verified_by: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pcm: dict[str, int] | None = None
    action: str = "stored"
    transferred: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StoredPart:
        """Read what :meth:`to_dict` gave."""
        return cls(**data)


def archive_body(
    source: Source,
    store: Store,
    stem: str,
    *,
    folder: str = "",
    source_format: str | None,
    ids: Mapping[str, str],
    duration: float | None,
    pcm: PcmFormat | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    backoff: float = 0.5,
) -> StoredPart:
    """Store one body under ``<folder>/<stem>.<extension>``, or find that it is there already.

    Cuts are resumed where the source can, otherwise begun again, for as long as each few attempts get further.

    :param stem: see :func:`include.archive.layout.part_stem`.
    :param folder: see :func:`include.archive.layout.recording_folder`; the result's key is relative to it.
    :param source_format: the artifact's own format field.
    :param ids: ids, no names, that are noted with the object, for example ``recording-id``.
    :param duration: seconds that the source states, for a plausibility check.
    :param pcm: how headerless samples are laid out, default 16 kHz, 16 bits, mono.
    :param stop: set it from another thread or a signal handler to end the copy.
    :param progress: called with bytes read and bytes in all (None when unknown), about once for each MiB.
    :param backoff: seconds before the first repetition; doubles up to 8 s.
    :raises ContentConflictError: when other bytes are stored there.
    :raises UnexpectedContentError: when the source sends a text page.
    :raises IntegrityError: when length, checksum or stored bytes stay wrong.
    :raises StoppedError: when ``stop`` was set.
    :raises StorageError: when the store refuses.
    """
    raise NotImplementedError
