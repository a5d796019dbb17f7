"""The engine: one body of the source into one object of the archive, whole and proven.

What is stored is the body as the source sent it, byte for byte; only headerless samples get a WAV header in front, so
that they can be played. A part counts as stored when its length was as declared (where it was), its declared
checksums matched, and the store proved that it holds what it was given.
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
import re
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from include.archive.ahead import Ahead, Lanes
from include.archive.audio import (
    MEDIA_TYPE_OF_EXTENSION,
    SNIFF_BYTES,
    PcmFormat,
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
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from include.archive.audio import MediaKind
    from include.archive.stores import ObjectInfo, Store

BUFFER_BYTES = 256 * 1024
"""Bytes that are read from the source at once, into one buffer that is used again and again."""

LARGE_BUFFER_BYTES = 2 * 1024 * 1024
"""The same for the first few copies of a process, which saves an eighth of what bytes cost."""

LARGE_BUFFERS = 4
"""How many copies have a large buffer at the same time; with many streams they would be most of the memory."""

PROGRESS_BYTES = 1024 * 1024
"""How many bytes pass between two reports of progress."""

MAX_FUTILE_ATTEMPTS = 5
"""How often in a row the source may fail without getting further than before."""

LOWEST_PACE = 1024.0
"""Bytes per second by which the source must get further, pauses included, for its failures to be forgiven."""

MAX_BACKOFF = 8.0
"""Longest pause between two attempts, in seconds, unless the source asks for more."""

MAX_WAIT = 30.0
"""Longest pause that the source may ask for before the copy gives up and leaves it to its caller to come back."""

AHEAD_BYTES = 16 * 1024 * 1024
"""Shortest body that is fetched in ranges side by side, where its source is slow and there are lanes for it."""

FAST_SOURCE = 100 * 1024 * 1024
"""Bytes per second, the wait for the first included, at which a single connection is believed to be all it takes."""

_large_buffers: list[bytearray | None] = [None] * LARGE_BUFFERS
_Done = TypeVar("_Done")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MARKER, _MARK = "archived-by", "recall-audio-archive"
_SOURCE_PROOFS = frozenset({"content-length", "length_unverified", "source-checksum"})


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
    def takes_ranges(self) -> bool:
        """Whether the source says that it can be asked for any range of the body."""
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

    def interrupt(self) -> None:
        """Make a read that waits in another thread fail soon. Never raises."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Source(Protocol):
    """Something that can be opened again and again."""

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> Body:
        """Open the body at ``offset``, provided that its version mark still is ``if_match``.

        :param end: where to stop reading; the whole body by default. Only asked of a body that takes ranges, and from
            several threads at once.
        """
        ...


class Stop:
    """Ends copies that run in other threads, also those that wait for a silent source.

    It takes no lock, so a signal handler may set it whatever was interrupted.

    :param above: another one, which ends these copies as well.
    """

    def __init__(self, above: Stop | None = None) -> None:
        self._is_set = False
        self._bodies: dict[int, Body] = {}
        self._above = above

    def set(self) -> None:
        """End all copies."""
        self._is_set = True
        for body in list(self._bodies.values()):
            body.interrupt()

    def is_set(self) -> bool:
        """Tell whether copies are to end."""
        return self._is_set or (self._above is not None and self._above.is_set())

    def wait(self, seconds: float) -> None:
        """Pause, unless and until this is set."""
        end = time.monotonic() + seconds
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def watch(self, body: Body) -> None:
        """Interrupt a body when this is set."""
        self._bodies[id(body)] = body
        if self._above is not None:
            self._above.watch(body)
        if self._is_set:
            body.interrupt()

    def forget(self, body: Body) -> None:
        """Leave a body alone that was watched."""
        self._bodies.pop(id(body), None)
        if self._above is not None:
            self._above.forget(body)


@dataclass(frozen=True)
class Shelf:
    """What is stored below some folders, looked up once for many parts.

    :param keys: of each stem, the keys that it is stored under.
    """

    keys: Mapping[str, Sequence[str]]


def survey(store: Store, folders: Sequence[str], *, tidy: bool = False) -> Shelf:
    """Look up what is stored below some folders.

    :param folders: for example those of a few participants of one recording.
    :param tidy: remove the unfinished objects of earlier tries meanwhile; such a try that still runs somewhere then
        fails at its next step.
    """
    prefixes = [f"{folder}/" for folder in folders]
    if not tidy:
        return _listed(store, prefixes)
    threads = ThreadPoolExecutor(1, "tidy")
    try:
        # Two lists, neither of which needs the other's answer.
        tidied = threads.submit(store.abort_stale_below, folders)
        shelf = _listed(store, prefixes)
        tidied.result()
    finally:
        threads.shutdown(wait=False)
    return shelf


def _listed(store: Store, prefixes: Sequence[str]) -> Shelf:
    keys: dict[str, list[str]] = {}
    for info in store.list(os.path.commonprefix(prefixes)):
        stem, _, extension = info.key.rpartition(".")
        if extension in MEDIA_TYPE_OF_EXTENSION and info.key.startswith(tuple(prefixes)):
            keys.setdefault(stem, []).append(info.key)
    return Shelf(keys)


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
    :param crc32: CRC-32 of the stored object in lower-case hex, where the store knows the object by that; else None.
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
    crc32: str | None = None
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
    expected_sha256: str | None = None,
    replaces: ObjectInfo | None = None,
    shelf: Shelf | None = None,
    lanes: Lanes | None = None,
    stop: Stop | None = None,
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
    :param expected_sha256: what a manifest says of the object; no other bytes are stored in its place.
    :param replaces: a damaged object whose place this body takes, and no other's; only with ``expected_sha256``.
    :param shelf: what :func:`survey` found, with ``tidy``, in a folder that this part belongs to; by default the copy
        does that for itself.
    :param lanes: how many connections the copies of a task may have together; by default this one has one.
    :param stop: set it from another thread or a signal handler to end the copy.
    :param progress: called with bytes read and bytes in all (None when unknown), about once for each MiB.
    :param backoff: seconds before the first repetition; doubles up to 8 s.
    :raises ContentConflictError: when other bytes are stored there.
    :raises UnexpectedContentError: when the source sends a text page.
    :raises IntegrityError: when length, checksum or stored bytes stay wrong.
    :raises StoppedError: when ``stop`` was set.
    :raises StorageError: when the store refuses.
    """
    reader = _Reader(source, stop=stop, backoff=backoff)
    lanes = lanes or Lanes()
    copy = _Copy(
        reader,
        store,
        folder=folder,
        stem=stem,
        source_format=source_format,
        ids=ids,
        duration=duration,
        pcm=pcm or PcmFormat(),
        expected_sha256=expected_sha256,
        replaces=replaces,
        shelf=shelf,
        lanes=lanes,
        progress=progress,
    )
    try:
        with lanes.one_copy(), _buffer() as buffer:
            return copy.run(buffer)
    finally:
        reader.close()


@contextmanager
def _buffer() -> Iterator[memoryview]:
    try:
        # One that was used before costs nothing; a new one, as much as a tenth of what it is for. The last one that was
        # used may still be in the processor's cache.
        buffer = _large_buffers.pop() or bytearray(LARGE_BUFFER_BYTES)
    except IndexError:
        yield memoryview(bytearray(BUFFER_BYTES))
        return
    try:
        yield memoryview(buffer)
    finally:
        _large_buffers.append(buffer)


def find_stored(
    store: Store,
    stem: str,
    *,
    folder: str = "",
    source_format: str | None,
    ids: Mapping[str, str],
    duration: float | None,
    shelf: Shelf | None = None,
) -> StoredPart | None:
    """Describe what an earlier run stored under ``<folder>/<stem>.<extension>``, without asking the source.

    The parameters are those of :func:`archive_body`.

    :return: None where nothing is stored, or nothing that we can vouch for.
    :raises ContentConflictError: when the stored bytes are not those that were noted with them.
    """
    copy = _Copy(
        _Reader(_NoSource(), stop=None, backoff=0),
        store,
        folder=folder,
        stem=stem,
        source_format=source_format,
        ids=ids,
        duration=duration,
        pcm=PcmFormat(),
        expected_sha256=None,
        replaces=None,
        shelf=shelf,
        lanes=Lanes(),
        progress=None,
    )
    return copy.find()


class _NoSource:
    """Stands where the source must not be asked."""

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> Body:
        raise LookupError("there is no source here")


class _Restart(Exception):  # noqa: N818 - a turn of events, not an error
    """The body begins again at its first byte; what was read of it so far no longer counts."""


class _Reader:
    """One body, read through cuts: opened again at the same place where the source can, from the start where not."""

    def __init__(self, source: Source, *, stop: Stop | None, backoff: float) -> None:
        self._source = source
        self._stop = stop or Stop()
        self._backoff = backoff
        self._body: Body | None = None
        self._ahead: Ahead | None = None
        self._may_go_ahead = True
        self._transferred = 0
        self.begin()

    def begin(self) -> None:
        """Go back to the first byte and forget what was known."""
        self.close()
        self.length: int | None = None
        self.content_type: str | None = None
        self.checksums: Mapping[str, str] = {}
        self._etag: str | None = None
        self._position = 0
        self._end: int | None = None
        self._furthest = 0
        self._since = time.monotonic()
        self._futile = 0
        self._ended = False
        self._waited = 0.0

    def close(self) -> None:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._transferred += ahead.transferred
            ahead.close()
        if self._body is not None:
            body, self._body = self._body, None
            self._stop.forget(body)
            body.close()

    def part(self, start: int, end: int, stop: Stop | None = None) -> _Reader:
        """Return a reader of a range of this very body.

        :param stop: ends it, instead of what ends this one.
        """
        one = _Reader(self._source, stop=stop or self._stop, backoff=self._backoff)
        one.length, one._etag = self.length, self._etag
        one._position = one._furthest = start
        one._end = end
        return one

    def can_go_ahead(self) -> bool:
        """Tell whether the body can be read in ranges, and is long enough to."""
        if not self._may_go_ahead or self._body is None or not self._body.takes_ranges:
            return False
        return self._etag is not None and self.length is not None and self.length >= AHEAD_BYTES

    def is_slow(self, wanted: int = 0) -> bool:
        """Tell whether the body comes more slowly than what is believed to be all that it takes.

        :param wanted: bytes from its beginning that would be read next; the time that has passed may show already that
            they come slowly.
        """
        return max(self._position, wanted) < FAST_SOURCE * self._waited

    def go_ahead(self, lanes: Lanes) -> None:
        """Read the rest in ranges, on as many connections as there are lanes."""
        start, end = self._position, self.length or 0
        self.close()
        stop = Stop(above=self._stop)
        self._ahead = Ahead(lanes, lambda first, last: self.part(first, last, stop), stop, start, end)
        self._ahead.begin()

    @property
    def transferred(self) -> int:
        """Bytes read from the source so far, repetitions included."""
        return self._transferred + (self._ahead.transferred if self._ahead is not None else 0)

    @property
    def is_ahead(self) -> bool:
        """Tell whether the body is read in ranges."""
        return self._ahead is not None

    @property
    def ways(self) -> int:
        """On how many connections the body comes."""
        return self._ahead.ways if self._ahead is not None else 1

    def read(self, buffer: memoryview, most: int | None = None) -> memoryview:
        """Return the next bytes, in ``buffer`` or in memory of another's, which stay until the next are asked for."""
        if self._ahead is None:
            return buffer[: self.readinto(buffer[:most])]
        self.check_stop()
        try:
            chunk = self._ahead.read(most)
        except _Restart:
            self.begin_without_ranges()
            raise
        self._position += len(chunk)
        return chunk

    def begin_without_ranges(self) -> None:
        """Go back to the first byte, since what was promised of ranges doesn't hold."""
        self._may_go_ahead = False
        self.begin()

    def keep(self) -> Callable[[], None]:
        """See :meth:`Ahead.keep`."""
        return self._ahead.keep() if self._ahead is not None else lambda: None

    def sum_ahead(self) -> None:
        """Have what comes ahead summed, see :attr:`Ahead.is_summed`."""
        if self._ahead is not None:
            self._ahead.is_summed = True

    @property
    def crc32(self) -> int | None:
        """CRC-32 of what was read last, where it is known."""
        return self._ahead.crc32 if self._ahead is not None else None

    def ready(self) -> None:
        """Open the body, if that was not done yet."""
        self._patiently(self._opened)

    def readinto(self, buffer: memoryview) -> int:
        """Read some bytes; 0 only at the end of a body that is as long as it said.

        :raises _Restart: when the source could only begin again.
        """
        if self._end is not None:
            buffer = buffer[: self._end - self._position]
            self._ended = not buffer
        if self._ended:
            return 0
        count = self._patiently(lambda: self._read_some(buffer))
        self._position += count
        self._transferred += count
        self._ended = count == 0
        # Only new ground that comes at a decent pace counts: neither a source that always breaks at the same place
        # nor one that yields a few bytes each time must be asked for ever.
        now = time.monotonic()
        if self._position - self._furthest > LOWEST_PACE * (now - self._since):
            self._furthest, self._since, self._futile = self._position, now, 0
        return count

    def _patiently(self, do: Callable[[], _Done]) -> _Done:
        while True:
            self.check_stop()
            try:
                return do()
            except CodedError as error:
                self.close()
                self.check_stop()
                self._futile += 1
                if error.permanent or self._futile >= MAX_FUTILE_ATTEMPTS:
                    raise
                self.wait(error, self._futile)

    def _read_some(self, buffer: memoryview) -> int:
        body, begun = self._opened(), time.monotonic()
        count = body.readinto(buffer)
        self._waited += time.monotonic() - begun
        if self.length is not None:
            if count == 0 and self._position < self.length:
                raise SourceCutError(f"the body ended after {self._position} of {self.length} bytes")
            if self._position + count > self.length:
                raise SourceCutError(f"the body went on after the {self.length} bytes that it declared")
        return count

    def _opened(self) -> Body:
        if self._body is None:
            begun = time.monotonic()
            self._body = self._open()
            self._waited += time.monotonic() - begun
        return self._body

    def _open(self) -> Body:
        # Without a version mark nothing says that the rest would belong to the same body.
        offset = self._position if self._etag else 0
        place = {} if self._end is None else {"end": self._end}
        body = self._source.open(offset=offset, if_match=self._etag if offset else None, **place)
        if self._end is None and body.offset == 0:
            self.length, self._etag = body.length, body.etag
            self.content_type, self.checksums = body.content_type, dict(body.checksums)
            self._stop.watch(body)
            if self._position:
                self._position = 0
                self._body = body
                raise _Restart
            return body
        same = body.etag in {None, self._etag} and (self.length is None or body.length in {None, self.length})
        if self._end is not None and body.etag != self._etag:
            same = False  # so many ranges must each say what they belong to
        if body.offset == offset and same:
            self._stop.watch(body)
            return body
        body.close()
        if self._end is not None:
            raise _Restart
        self._etag = None
        raise SourceChangedError("the source went on with another body, or at another place, than was asked for")

    @property
    def position(self) -> int:
        """The byte that is read next."""
        return self._position

    def back(self, position: int, error: CodedError) -> None:
        """Go on from an earlier byte, after a pause, because what was read since is needed again.

        :raises CodedError: ``error``, when that happens too often without getting further.
        """
        self.close()
        self._futile += 1
        if self._futile >= MAX_FUTILE_ATTEMPTS:
            raise error
        self._position, self._ended = position, False
        self.wait(error, self._futile)

    def check_stop(self) -> None:
        if self._stop.is_set():
            raise StoppedError("told to stop")

    def wait(self, error: CodedError, attempt: int) -> None:
        """Wait before the next attempt; pass the error on if the other side wants more patience than fits in here."""
        asked = error.retry_after or 0
        if asked > MAX_WAIT:
            raise error
        pause = max(asked, min(MAX_BACKOFF, self._backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1))  # noqa: S311
        self._stop.wait(pause)


class _Digests:
    """Running hashes of a body and of what is stored of it."""

    def __init__(self, *, header: bytes, declared: Mapping[str, str]) -> None:
        self._source = hashlib.sha256()
        # A body that is stored unchanged is hashed once.
        self._stored = hashlib.sha256(header) if header else self._source
        self._md5 = hashlib.md5(usedforsecurity=False) if "md5" in declared else None
        self._crc32 = 0 if "crc32" in declared else None
        self._declared = declared
        self.source_bytes = 0
        self.stored_bytes = len(header)

    def update(self, chunk: memoryview) -> None:
        self._source.update(chunk)
        self.source_bytes += len(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)
        if self._crc32 is not None:
            self._crc32 = zlib.crc32(chunk, self._crc32)
        self.pad(chunk)

    def pad(self, chunk: bytes | memoryview) -> None:
        """Count bytes that are stored, whether they came from the source or not."""
        if self._stored is not self._source:
            self._stored.update(chunk)
        self.stored_bytes += len(chunk)

    def copy(self) -> _Digests:
        """Return what these are at this moment."""
        one = copy.copy(self)
        one._source = self._source.copy()
        one._stored = one._source if self._stored is self._source else self._stored.copy()
        one._md5 = None if self._md5 is None else self._md5.copy()
        return one

    @property
    def source_sha256(self) -> str:
        return self._source.hexdigest()

    @property
    def stored_sha256(self) -> str:
        return self._stored.hexdigest()

    def check_declared(self) -> bool:
        """Compare with the checksums that the source declared; False when it declared none that we know.

        :raises SourceChecksumError: when one differs.
        """
        actual = {"sha256": self.source_sha256}
        if self._md5 is not None:
            actual["md5"] = self._md5.hexdigest()
        if self._crc32 is not None:
            actual["crc32"] = f"{self._crc32:08x}"
        known = {name: value.lower() for name, value in self._declared.items() if name in actual}
        for name, value in known.items():
            if value != actual[name]:
                raise SourceChecksumError(f"the body does not match the {name} that its source declared")
        return bool(known)


class _Flow:
    """A body on its way from the source through the hashes, see :class:`include.archive.stores.base.Flow`.

    :param view: memory to read into; its first bytes are ``head``.
    :param head: what was read already, to see what the body is.
    :param header: what is put in front of the body.
    :param size: of all that is stored, where known.
    :param check: called with the hashes when all is read; raises what forbids to store it.
    :param progress: see :func:`archive_body`.
    """

    def __init__(
        self,
        reader: _Reader,
        view: memoryview,
        *,
        head: memoryview,
        header: bytes = b"",
        size: int | None = None,
        check: Callable[[_Digests], object] = lambda digests: None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        self.digests = _Digests(header=header, declared=reader.checksums)
        self.is_complete = False
        self._reader = reader
        self._view = view
        self._header = header
        self._is_header_due = bool(header)
        self._head = head
        self._size = size
        self._check = check
        self._progress = progress
        self._reported = 0
        self._is_in_view = False
        self._marked: tuple[_Digests, int] | None = None

    def chunks(self, count: int | None = None) -> Iterator[memoryview]:
        """See :meth:`include.archive.stores.base.Flow.chunks`; ``count`` is never less than what was read ahead."""
        left = count
        while left is None or left > 0:
            chunk = self._next(left)
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)
            yield chunk
        if self.digests.stored_bytes == self._size and self._next(1):
            raise SourceCutError(f"the body went on after the {self._size} bytes that it was to have")

    @property
    def ways(self) -> int:
        """See :attr:`include.archive.stores.base.Flow.ways`."""
        return self._reader.ways

    @property
    def can_keep(self) -> bool:
        """See :attr:`include.archive.stores.base.Flow.can_keep`."""
        return self._reader.is_ahead

    def keep(self) -> Callable[[], None]:
        """See :meth:`include.archive.stores.base.Flow.keep`."""
        # Where the body was read before its ranges, nothing else is read as long as they last.
        return (lambda: None) if self._is_in_view else self._reader.keep()

    def sum_ahead(self) -> None:
        """See :meth:`include.archive.stores.base.Flow.sum_ahead`."""
        self._reader.sum_ahead()

    @property
    def crc32(self) -> int | None:
        """See :attr:`include.archive.stores.base.Flow.crc32`."""
        return None if self._is_in_view else self._reader.crc32

    def check_stop(self) -> None:
        """See :meth:`include.archive.stores.base.Flow.check_stop`."""
        self._reader.check_stop()

    def again(self, start: int, count: int) -> Iterator[memoryview]:
        """See :meth:`include.archive.stores.base.Flow.again`."""
        length, ahead = self._reader.length or 0, len(self._header)
        yield memoryview(self._header)[start : start + count]
        first, last = max(0, start - ahead), min(start + count - ahead, length)
        with closing(self._reader.part(first, max(first, last))) as part:
            view = memoryview(bytearray(BUFFER_BYTES))
            try:
                while chunk := view[: part.readinto(view)]:
                    yield chunk
            except _Restart:
                self._reader.begin_without_ranges()
                raise
        if self._header:
            yield memoryview(wav_padding(length))[max(0, start - ahead - length) : start + count - ahead - length]

    @property
    def sha256(self) -> str:
        """See :attr:`include.archive.stores.base.Flow.sha256`."""
        return self.digests.stored_sha256

    def drain(self) -> None:
        """Read what is left, for its hashes alone."""
        for _ in self.chunks():
            continue

    def mark(self) -> None:
        """See :meth:`include.archive.stores.base.Flow.mark`."""
        begins = self._is_header_due or bool(self._head)
        self._marked = None if begins else (self.digests.copy(), self._reader.position)

    def back(self, error: CodedError) -> None:
        """See :meth:`include.archive.stores.base.Flow.back`."""
        self.is_complete = False
        if self._marked is None:
            # The source may send another body now, whose first bytes and length nobody has looked at.
            self._reader.back(0, error)
            raise _Restart
        digests, position = self._marked
        self._reader.back(position, error)
        self.digests = digests.copy()

    def _next(self, most: int | None) -> memoryview:
        """Return some bytes; none at the end, when all was checked."""
        self._is_in_view = False
        if self._is_header_due:
            self._is_header_due = False
            return memoryview(self._header)
        chunk, self._head = self._head, self._view[:0]
        self._is_in_view = bool(chunk) or not self._reader.is_ahead
        if not chunk and not self.is_complete:
            chunk = self._reader.read(self._view, most)
        if chunk:
            self.digests.update(chunk)
            self._report(self.digests.source_bytes - self._reported >= PROGRESS_BYTES)
        elif not self.is_complete:
            if padding := self._padding():
                self.digests.pad(padding)
                return memoryview(padding)
            self._report(True)
            self._check(self.digests)
            self.is_complete = True
        return chunk

    def _padding(self) -> bytes:
        is_padded = self.digests.stored_bytes > len(self._header) + self.digests.source_bytes
        return wav_padding(self.digests.source_bytes) if self._header and not is_padded else b""

    def _report(self, due: bool) -> None:  # noqa: FBT001
        if due and self._progress is not None:
            self._reported = self.digests.source_bytes
            self._progress(self._reported, self._reader.length)


class _Copy:
    """One run of the engine."""

    def __init__(
        self,
        reader: _Reader,
        store: Store,
        *,
        folder: str,
        stem: str,
        source_format: str | None,
        ids: Mapping[str, str],
        duration: float | None,
        pcm: PcmFormat,
        expected_sha256: str | None,
        replaces: ObjectInfo | None,
        shelf: Shelf | None,
        lanes: Lanes,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self._reader = reader
        self._store = store
        self._folder = f"{folder}/" if folder else ""
        self._stem = stem
        self._source_format = source_format
        self._identity = {_MARKER: _MARK, **{name.lower().replace("_", "-"): safe_id(ids[name]) for name in ids}}
        self._duration = duration
        self._pcm = pcm
        self._expected_sha256 = expected_sha256
        self._replaces = replaces
        self._shelf = shelf
        self._lanes = lanes
        self._progress = progress
        self._view = memoryview(b"")
        self._measured: _Digests | None = None

    def run(self, buffer: memoryview) -> StoredPart:
        self._view = buffer
        stem = self._folder + self._stem
        if self._shelf is None:
            # First of all, so that an earlier try that still runs somewhere fails at its next step.
            self._store.abort_stale(stem)
        if self._replaces is not None:
            return self._attempt(None)
        existing = self._existing(stem)
        recognised = self._recognise(existing) if existing else None
        return recognised or self._attempt(existing)

    def find(self) -> StoredPart | None:
        existing = self._existing(self._folder + self._stem)
        return self._recognise(existing) if existing else None

    def _existing(self, stem: str) -> ObjectInfo | None:
        shelf = self._shelf or _listed(self._store, [f"{stem}."])
        keys = shelf.keys.get(stem, ())
        if len(keys) > 1:
            raise ContentConflictError(f"{self._store.uri(stem)}: stored more than once: {', '.join(keys)}")
        return self._store.stat(keys[0]) if keys else None

    def _recognise(self, info: ObjectInfo) -> StoredPart | None:
        """Describe an object by the notes that an earlier run left with it, if its bytes bear them out.

        :raises ContentConflictError: when they do not.
        """
        notes = info.metadata
        try:
            if any(notes[name] != value for name, value in self._identity.items()):
                return None
            verified_by = [
                word for word in notes.get("verified-by", "length_unverified").split(",") if word in _SOURCE_PROOFS
            ]
            if "sha256" not in notes:
                return self._read_again(info, verified_by)
            sha256, source_sha256, source_bytes = notes["sha256"], notes["source-sha256"], int(notes["source-bytes"])
            pcm = PcmFormat.parse(notes["pcm"]) if "pcm" in notes else None
            if not _SHA256.fullmatch(sha256) or not _SHA256.fullmatch(source_sha256) or source_bytes < 0:
                return None
        except (KeyError, ValueError):
            return None
        size = source_bytes if pcm is None else _wav_bytes(pcm, source_bytes)
        proof = self._proof(info, size=size, sha256=sha256, crc32=notes.get("crc32") or None)
        if proof is None:
            raise ContentConflictError(f"{self._store.uri(info.key)}: not the bytes that were noted when it was stored")
        part = self._part(
            info.key,
            info.size,
            sha256,
            source_bytes,
            source_sha256,
            pcm,
            [*verified_by, proof],
            action="already_present",
        )
        return replace(part, crc32=notes.get("crc32") or None)

    def _read_again(self, info: ObjectInfo, verified_by: list[str]) -> StoredPart | None:
        """Describe an object of ours that a store took without a note of its hash, as S3 does with what is sent on.

        It was published whole or not at all, by us, so its own bytes say the rest, or the store's SHA-256 of them.
        """
        pcm = PcmFormat.parse(info.metadata["pcm"]) if "pcm" in info.metadata else None
        source_bytes = int(info.metadata["source-bytes"]) if "source-bytes" in info.metadata else info.size
        header = wav_header(pcm, source_bytes) if pcm is not None else b""
        if info.size != len(header) + source_bytes + (len(wav_padding(source_bytes)) if header else 0):
            return None
        sha256 = source_sha256 = "" if header else info.checksums.get("sha256", "")
        proof, crc32 = "store-checksum" if sha256 else "read-back", 0
        if not sha256:
            stored, source, position = hashlib.sha256(), hashlib.sha256(), -len(header)
            for chunk in self._store.read(info.key):
                self._reader.check_stop()
                stored.update(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                source.update(memoryview(chunk)[max(0, -position) : max(0, source_bytes - position)])
                position += len(chunk)
            sha256, source_sha256 = stored.hexdigest(), source.hexdigest()
        part = self._part(
            info.key,
            info.size,
            sha256,
            source_bytes,
            source_sha256,
            pcm,
            [*verified_by, proof],
            action="already_present",
        )
        return replace(part, crc32=f"{crc32:08x}" if "crc32" in info.checksums else None)

    def _attempt(self, existing: ObjectInfo | None) -> StoredPart:
        attempt = 0
        while True:
            try:
                return self._transfer(existing)
            except _Restart:
                continue
            except (SourceChangedError, SourceChecksumError, UploadLostError) as error:
                attempt += 1
                if attempt >= MAX_FUTILE_ATTEMPTS:
                    raise
                self._reader.begin()
                self._measured = None
                self._reader.wait(error, attempt)

    def _transfer(self, existing: ObjectInfo | None) -> StoredPart:
        """Read the body once (twice where its length must be learnt first) and store it, or compare it with what is."""
        kind, head = self._head()
        length, first = self._reader.length, None
        pcm = self._pcm_of(existing or self._replaces) if kind.is_pcm else None
        if pcm is not None and length is None:
            if self._measured is None:  # only once: each new beginning forgives the source its failures
                flow = self._flow(head)
                flow.drain()
                self._measured = flow.digests
                self._reader.begin()
                kind, head = self._head()
            first = self._measured
            length = first.source_bytes
        if self._is_to_go_ahead():
            self._reader.go_ahead(self._lanes)
        key = f"{self._folder}{self._stem}.{kind.extension}"
        header = wav_header(pcm, length) if pcm is not None and length is not None else b""
        size = None if length is None else length if pcm is None else _wav_bytes(pcm, length)
        parts: list[StoredPart] = []
        flow = self._flow(
            head, header, size=size, check=lambda digests: parts.append(self._checked(key, pcm, digests, first))
        )
        if existing is not None:
            if existing.key != key:
                raise ContentConflictError(f"{self._store.uri(existing.key)}: the source now sends {kind.media_type}")
            flow.drain()
            return self._compared(existing.key, parts[-1])
        notes = {**self._identity, **({} if pcm is None else {"pcm": str(pcm)}), "verified-by": self._length_proof()}
        if length is not None:
            notes["source-bytes"] = str(length)
        if self._replaces is not None and self._replaces.key != key:
            raise ContentConflictError(f"{self._store.uri(self._replaces.key)}: the source now sends {kind.media_type}")
        with self._store.write(
            key, media_type=kind.media_type, size=size, metadata=notes, replaces=self._replaces
        ) as writer:

            def described() -> StoredPart:
                return replace(parts[-1], crc32=None if writer.crc32 is None else f"{writer.crc32:08x}")

            try:
                info = writer.take(flow, lambda: _evidence(described()))
            except AlreadyExistsError:
                flow.drain()
                return self._compared(key, parts[-1])
            part = described()
            proof = self._proof(info, size=part.bytes, sha256=part.sha256, crc32=part.crc32, md5=writer.md5)
            if proof is None:
                writer.withdraw()
                raise StoredBytesDifferError(f"{self._store.uri(key)}: the store kept other bytes than it was given")
        return replace(part, verified_by=[*part.verified_by, proof])

    def _is_to_go_ahead(self, wanted: int = 0) -> bool:
        return self._lanes.share > 1 and self._reader.can_go_ahead() and self._reader.is_slow(wanted)

    def _flow(
        self,
        head: memoryview,
        header: bytes = b"",
        *,
        size: int | None = None,
        check: Callable[[_Digests], object] = lambda digests: None,
    ) -> _Flow:
        return _Flow(
            self._reader,
            self._view,
            head=head,
            header=header,
            size=size,
            check=check,
            progress=self._progress,
        )

    def _head(self) -> tuple[MediaKind, memoryview]:
        self._reader.ready()
        room = len(self._view)
        # Little at first: what comes slowly should not come on one connection for long.
        most = min(room, BUFFER_BYTES) if self._lanes.share > 1 and self._reader.can_go_ahead() else room
        filled = 0
        while filled < SNIFF_BYTES and (count := self._reader.readinto(self._view[filled:most])):
            filled += count
        if most < room and not self._is_to_go_ahead(room):
            filled += self._reader.readinto(self._view[filled:])
        head = bytes(self._view[: min(filled, SNIFF_BYTES)])
        kind = sniff(head, source_format=self._source_format, content_type=self._reader.content_type)
        return kind, self._view[:filled]

    def _checked(self, key: str, pcm: PcmFormat | None, digests: _Digests, first: _Digests | None) -> StoredPart:
        """Describe a body that was read to its end, if it is what the source declared.

        :raises SourceChecksumError: when it does not match a declared checksum.
        :raises SourceChangedError: when the first reading gave something else.
        """
        self._reader.check_stop()
        if first is not None and first.source_sha256 != digests.source_sha256:
            raise SourceChangedError("two readings of the body gave different bytes")
        verified_by = [self._length_proof()]
        if digests.check_declared():
            verified_by.append("source-checksum")
        return self._part(
            key,
            digests.stored_bytes,
            digests.stored_sha256,
            digests.source_bytes,
            digests.source_sha256,
            pcm,
            verified_by,
        )

    def _length_proof(self) -> str:
        return "length_unverified" if self._reader.length is None else "content-length"

    def _compared(self, key: str, part: StoredPart) -> StoredPart:
        """Accept the object that is already there if it holds the same bytes."""
        info = self._store.stat(key)
        if info is None:
            raise UploadLostError(f"{self._store.uri(key)}: was there a moment ago and is not now")
        if info.size != part.bytes or self._stored_sha256(key) != part.sha256:
            raise ContentConflictError(f"{self._store.uri(key)}: other bytes are stored there and stay as they are")
        return replace(part, action="already_present", verified_by=[*part.verified_by, "read-back"])

    def _proof(
        self, info: ObjectInfo, *, size: int, sha256: str, crc32: str | None, md5: str | None = None
    ) -> str | None:
        """Say how the store shows that it holds these bytes; None when it shows that it does not."""
        if info.size != size:
            return None
        for name, expected in (("sha256", sha256), ("crc32", crc32), ("md5", md5)):
            computed = info.checksums.get(name)
            if computed is not None and expected is not None:
                return "store-checksum" if computed == expected else None
        return "read-back" if self._stored_sha256(info.key) == sha256 else None

    def _stored_sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for chunk in self._store.read(key):
            self._reader.check_stop()
            digest.update(chunk)
        return digest.hexdigest()

    def _pcm_of(self, existing: ObjectInfo | None) -> PcmFormat:
        """Return the layout that an existing object was stored with; today's setting says nothing about it."""
        try:
            return PcmFormat.parse(existing.metadata["pcm"]) if existing is not None else self._pcm
        except (KeyError, ValueError):
            return self._pcm

    def _part(
        self,
        key: str,
        size: int,
        sha256: str,
        source_bytes: int,
        source_sha256: str,
        pcm: PcmFormat | None,
        verified_by: list[str],
        *,
        action: str = "stored",
    ) -> StoredPart:
        if self._expected_sha256 not in (None, sha256):
            raise ContentConflictError(f"{self._store.uri(key)}: not the bytes that the recording's manifest lists")
        signs = {
            "empty": source_bytes == 0,
            "length_unverified": "length_unverified" in verified_by,
            "pcm_format_assumed": pcm is not None,
            "odd_length": pcm is not None and source_bytes % pcm.frame_bytes != 0,
            "size_implausible": pcm is not None and size_implausible(source_bytes, self._duration, pcm),
        }
        return StoredPart(
            key=key[len(self._folder) :],
            bytes=size,
            sha256=sha256,
            media_type=MEDIA_TYPE_OF_EXTENSION[key.rpartition(".")[2]],
            source_format=self._source_format,
            source_bytes=source_bytes,
            source_sha256=source_sha256,
            verified_by=verified_by,
            warnings=[name for name, shown in signs.items() if shown],
            pcm=None if pcm is None else pcm.to_dict(),
            action=action,
            transferred=self._reader.transferred,
        )


def _wav_bytes(pcm: PcmFormat, data_bytes: int) -> int:
    return len(wav_header(pcm, data_bytes)) + data_bytes + len(wav_padding(data_bytes))


def _evidence(part: StoredPart) -> dict[str, str]:
    """Return the notes by which a later run recognises the object without asking the source."""
    return {
        "sha256": part.sha256,
        **({} if part.crc32 is None else {"crc32": part.crc32}),
        "source-sha256": part.source_sha256,
        "source-bytes": str(part.source_bytes),
        "verified-by": ",".join(part.verified_by),
    }
