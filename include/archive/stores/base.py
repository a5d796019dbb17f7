"""What every store promises, wherever it keeps its objects.

- An object is visible under its key only whole: never while it is being written, never after a failed write.
- A key is written once. Nothing replaces an object but a repair that names the very version that it found damaged.
- Memory does not grow with the size of an object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from include.archive.errors import IntegrityError
from include.archive.layout import is_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from include.errors import CodedError

READ_CHUNK = 1024 * 1024
"""Bytes per chunk that :meth:`Store.read` yields."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a store tells about one object.

    :param key: key relative to the archive.
    :param size: bytes.
    :param metadata: the small notes stored with the object, keys in lower case. Empty in listings.
    :param etag: the store's own version mark; says nothing about the bytes.
    :param checksums: checksums of the whole object that the store itself computed: algorithm to lower-case hex.
    :param modified: when it was stored, in seconds since 1970.
    """

    key: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    modified: float = 0.0


@dataclass(frozen=True)
class Unfinished:
    """An object that somebody began to write.

    :param key: where it was to be.
    :param mark: what the store calls it.
    :param since: when it was begun, or last written to, in seconds since 1970.
    """

    key: str
    mark: str
    since: float


class Flow(Protocol):
    """A body on its way into a store."""

    @property
    def sha256(self) -> str:
        """SHA-256 of all that was yielded so far, lower-case hex."""
        ...

    def chunks(self, count: int | None = None) -> Iterator[memoryview]:
        """Yield the next ``count`` bytes, or all that are left.

        Each chunk is valid until the next is asked for. Whoever has taken the last byte may make the object visible as
        soon as this ends without an error: what forbids it must be raised before.
        """
        ...

    @property
    def ways(self) -> int:
        """On how many connections the body comes: several where one is slow."""
        ...

    @property
    def can_keep(self) -> bool:
        """Whether chunks can be kept."""
        ...

    def keep(self) -> Callable[[], None]:
        """Leave the chunk that was yielded last as it is until what this returns is called, from any thread.

        Only where :attr:`can_keep` says so.
        """
        ...

    def sum_ahead(self) -> None:
        """Have the CRC-32 of chunks computed where they come in, as far as they come ahead of their turn."""
        ...

    @property
    def crc32(self) -> int | None:
        """CRC-32 of the chunk that was yielded last, where that is known."""
        ...

    def check_stop(self) -> None:
        """Raise if the copy is to end."""
        ...

    def again(self, start: int, count: int) -> Iterator[memoryview]:
        """Yield bytes that were yielded before, read anew. Only of a body that is ahead.

        :param start: of what is stored.
        """
        ...

    def mark(self) -> None:
        """Remember this place."""
        ...

    def back(self, error: CodedError) -> None:
        """Wait a moment and return to the marked place, because of ``error``.

        :raises CodedError: when that was done too often: ``error`` itself.
        :raises Exception: one of the flow's own, where the whole object has to be begun anew.
        """
        ...


class Writer(Protocol):
    """One object being written. As a context manager it aborts unless it was committed."""

    @property
    def crc32(self) -> int | None:
        """CRC-32 of what was committed, where the store compares that and not the SHA-256; else None."""
        ...

    @property
    def md5(self) -> str | None:
        """MD5 of what was committed, lower-case hex, where no checksum went with it; else None."""
        ...

    def write(self, data: memoryview) -> None:
        """Append bytes; the memory behind ``data`` may be reused as soon as this returns.

        :raises UploadLostError: when somebody cleaned up the unfinished object.
        :raises StorageError: when the store refuses.
        """
        ...

    def take(self, flow: Flow, notes: Callable[[], Mapping[str, str]]) -> ObjectInfo:
        """Write a whole flow and commit; raises as :meth:`write` and :meth:`commit` do, and what the flow raises.

        :param notes: asked for the metadata of the commit once the flow has ended.
        """
        ...

    def commit(self, metadata: Mapping[str, str]) -> ObjectInfo:
        """Make the object visible under its key, if the key is still free, or still holds what is to be replaced.

        :param metadata: notes that only the end could tell, kept where the store can still take them.
        :raises AlreadyExistsError: when the key is taken, or holds another version than the one to be replaced.
        :raises ObjectMissingError: when what was to be replaced is gone.
        :raises IntegrityError: when another number of bytes was written than announced.
        :raises UploadLostError: when somebody cleaned up the unfinished object.
        :raises StorageError: when the store refuses.
        """
        ...

    def abort(self) -> None:
        """Leave nothing behind. Does nothing after a commit, and never raises for a store's refusal."""
        ...

    def withdraw(self) -> None:
        """Take back the object that this writer has just committed and that turned out damaged.

        One that replaced another stays: it is no worse than what was there, and then there would be none.
        """
        ...

    def __enter__(self) -> Writer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """Objects under keys. Keys are those of :mod:`include.archive.layout`; others raise ValueError."""

    def preflight(self, folder: str, *, replacing: bool = False) -> None:
        """Find out, before anything is fetched, whether objects can be stored in a folder and will be safe there.

        Leaves nothing behind in a store that keeps its promises.

        :param replacing: find out as well whether the store replaces one version of an object and no other.
        :raises StorageError: when the store refuses, or would replace what it was told not to.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Describe one object with its metadata and checksums; None when there is none."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix``, in key order, unfinished ones never."""
        ...

    def folders(self, folder: str = "") -> Iterator[str]:
        """Yield the keys of the folders directly below ``folder``, in order."""
        ...

    def each_folder(self, folder: str, name: str) -> Iterator[tuple[str, ObjectInfo | None]]:
        """Yield each folder directly below ``folder``, in order, with the object of that name in it, if there is one.

        One listing, of which a folder on a disk needs no more than that object.
        """
        ...

    def loose(self, folder: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects that lie directly in ``folder``, not in folders below it, in key order."""
        ...

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Yield what was begun, and not finished, under keys that begin with ``prefix``, a folder and a slash."""
        ...

    def discard(self, unfinished: Unfinished) -> bool:
        """Remove what was begun; False when it was gone, or the store refused."""
        ...

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Yield the object's bytes in chunks of at most 1 MiB.

        :param start: how many bytes to leave out at the beginning; nothing is yielded from the object's end on.
        :raises ObjectMissingError: when there is no such object.
        """
        ...

    def write(
        self,
        key: str,
        *,
        media_type: str,
        size: int | None = None,
        metadata: Mapping[str, str] | None = None,
        replaces: ObjectInfo | None = None,
    ) -> Writer:
        """Begin a new object.

        :param key: where it will be.
        :param media_type: what the bytes are.
        :param size: how many bytes will follow, where that is known.
        :param metadata: what is known at the start; the commit may add to it.
        :param replaces: the damaged version, as :meth:`stat` described it, whose place the object takes; there is
            always one of the two under the key. By default the key must be free.
        """
        ...

    def put_if_absent(self, key: str, data: bytes, media_type: str, metadata: Mapping[str, str] | None = None) -> bool:
        """Store a small object in one step; False when the key is taken."""
        ...

    def delete(self, info: ObjectInfo) -> None:
        """Remove an object that is still the version that ``info`` describes.

        :raises AlreadyExistsError: when another version is there by now.
        """
        ...

    def abort_stale(self, *stems: str) -> int:
        """Remove unfinished objects that earlier tries left for keys ``<stem>.<extension>``; of one folder, at once.

        :return: how many were removed.
        """
        ...

    def abort_stale_below(self, folders: Sequence[str]) -> int:
        """Remove unfinished objects that earlier tries left in some folders, or below them.

        :return: how many were removed.
        """
        ...

    def uri(self, key: str) -> str:
        """Return the address of an object or folder."""
        ...

    def browse_url(self, key: str) -> str | None:
        """Return the store's own web page that shows an object or folder; None where it has none."""
        ...


def checked_key(key: str) -> str:
    """Return the key, or refuse it.

    :raises ValueError: when it is not of the form that :mod:`include.archive.layout` makes.
    """
    if not is_key(key):
        raise ValueError(f"not a key of this archive: {key[:120]!a}")
    return key


def check_size(key: str, announced: int | None, written: int) -> None:
    """Refuse an object that is not as long as it was announced to be.

    :raises IntegrityError: when the two differ.
    """
    if announced is not None and announced != written:
        raise IntegrityError(f"{key}: {written} bytes were written where {announced} were announced")


def is_of_stem(key: str, stem: str) -> bool:
    """Tell whether a key is the stem with one extension, and not of another stem that begins alike."""
    return key.startswith(stem + ".") and key[len(stem) + 1 :].isalnum()
