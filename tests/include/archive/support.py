from __future__ import annotations

import functools
import hashlib
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from include.archive.copy import StoredPart, archive_body
from include.errors import CodedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from include.archive.stores import Store

STEM = "participant=100/artifact-1/part-1"
IDS = {"recording_id": "rec-1", "artifact_id": "artifact-1", "part_id": "part-1"}


@dataclass
class Archive:
    """A store under test, and ways to look at it and to spoil it that do not go through it.

    ``proof``: how the store shows that it holds what it was given. ``flip``: turn over one bit of an object, and
    ``remove``: take it away, behind the store's back.
    """

    kind: str
    proof: str
    store: Store
    get: Callable[[str], bytes]
    put: Callable[..., None]
    keys: Callable[[], list[str]]
    leftovers: Callable[[], list[str]]
    modified: Callable[[str], object]
    flip: Callable[[str, int], object]
    remove: Callable[[str], object]


@functools.lru_cache(maxsize=8)
def audio(size: int, *, seed: int = 0, magic: bytes = b"OggS") -> bytes:
    """Bytes in which any shift, splice or repetition shows."""
    return (magic + random.Random(seed).randbytes(size))[:size]  # noqa: S311


def samples(size: int, *, seed: int = 0) -> bytes:
    return audio(size, seed=seed, magic=b"\x01\x00\x02\x00")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wait_for(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 50
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


class CutError(CodedError):
    code = "media_cut"
    permanent = False


@dataclass
class FakeSource:
    """A source in memory that can misbehave.

    ``cuts``: places at which the connection breaks, each once. ``breaks_at``: a place at which it breaks every time.
    ``closes``: break by a clean end instead of an error. ``later``: what the second and later openings serve.
    """

    data: bytes
    length: int | None | str = "true"
    etag: str | None = '"v1"'
    ranges: bool = True
    cuts: Iterable[int] = ()
    breaks_at: int | None = None
    closes: bool = False
    checksums: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None
    later: tuple[bytes, str | None] | None = None
    chunk: int = 256 * 1024
    error: type[CodedError] = CutError
    opened: list[tuple[int, str | None]] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.cuts = list(self.cuts)

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> FakeBody:
        self.opened.append((offset, if_match))
        data, etag = self.data, self.etag
        if self.later is not None and len(self.opened) > 1:
            data, etag = self.later
        if not self.ranges or (if_match is not None and if_match != etag):
            offset = 0
        return FakeBody(self, data, etag, offset)


class FakeBody:
    def __init__(self, source: FakeSource, data: bytes, etag: str | None, offset: int) -> None:
        self._source = source
        self._data = data
        self._position = offset
        self.offset = offset
        self.takes_ranges = source.ranges
        self.etag = etag
        self.length = len(data) if source.length == "true" else source.length
        self.content_type = source.content_type
        self.checksums = source.checksums
        self.closed = False

    def readinto(self, buffer: memoryview) -> int:
        assert not self.closed
        end = min(len(self._data), self._position + self._source.chunk, self._position + len(buffer))
        cuts: list[int] = self._source.cuts  # type: ignore[assignment]
        ahead = [cut for cut in cuts if self._position <= cut <= end]
        if self._source.breaks_at is not None and self._position <= self._source.breaks_at <= end:
            ahead.append(self._source.breaks_at)
        if ahead:
            end = min(ahead)
            if end == self._position:
                if end in cuts:
                    cuts.remove(end)
                if self._source.closes:
                    return 0
                raise self._source.error("cut")
        piece = self._data[self._position : end]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        self._source.sent += len(piece)
        return len(piece)

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def run(archive: Archive, source: FakeSource, **changes: Any) -> StoredPart:
    arguments: dict[str, Any] = {"source_format": "ogg", "ids": IDS, "duration": None, "backoff": 0.0, **changes}
    stem = arguments.pop("stem", STEM)
    return archive_body(source, archive.store, stem, **arguments)
