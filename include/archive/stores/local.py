"""The archive in a local folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import stat
import zlib
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from include.archive.errors import (
    AlreadyExistsError,
    ArchiveError,
    ObjectMissingError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    StoredBytesDifferError,
    UploadLostError,
)
from include.archive.stores.base import READ_CHUNK, ObjectInfo, Unfinished, check_size, checked_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from include.archive.stores.base import Flow

log = logging.getLogger(__name__)

_TEMP = ".tmp-"
_ATTRIBUTE = "user.recall."
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR, errno.EISDIR})
_NO_ATTRIBUTES = frozenset({errno.ENOTSUP, errno.ENOSPC, errno.E2BIG, errno.ERANGE, errno.EPERM, errno.EINVAL})
_ABSENT = frozenset({errno.ENOENT, errno.ENAMETOOLONG})


class LocalStore:
    """Objects as files below one folder, which is created when the first object is.

    Below the root no symbolic link is ever followed. A file is written under a temporary name that nobody else can
    read, then linked to its own: a link, unlike a rename, never replaces anything. Only a repair renames. Notes are
    kept as extended attributes where the file system has them, and are left out where it does not.

    :param root: absolute path of the folder.
    """

    def __init__(self, *, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        # The umask can only be read by setting it; for that moment it is the strictest.
        umask = os.umask(0o077)
        os.umask(umask)
        self._mode = 0o644 & ~umask

    def preflight(self, folder: str, *, replacing: bool = False) -> None:  # noqa: ARG002 - all folders are alike
        """See :meth:`include.archive.stores.base.Store.preflight`."""
        with self.write("probe", media_type="application/x-empty", size=0):
            pass  # leaving without a commit takes it back
        self.abort_stale("probe")  # those of runs that were killed here

    def stat(self, key: str) -> ObjectInfo | None:
        """See :meth:`include.archive.stores.base.Store.stat`."""
        with _errors(key), self._file(checked_key(key)) as file:
            return None if file is None else _info(key, file)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :meth:`include.archive.stores.base.Store.list`."""
        folder, _, start = prefix.rpartition("/")
        yield from self._walk(folder, start)

    def folders(self, folder: str = "") -> Iterator[str]:
        """See :meth:`include.archive.stores.base.Store.folders`."""
        for name, state in self._entries(folder):
            if state is None:
                yield _join(folder, name)

    def each_folder(self, folder: str, name: str) -> Iterator[tuple[str, ObjectInfo | None]]:
        """See :meth:`include.archive.stores.base.Store.each_folder`."""
        found: list[tuple[str, ObjectInfo | None]] = []
        with _errors(folder):
            try:
                folder_fd = self._open_folder(folder)
            except FileNotFoundError:
                return
            try:
                with os.scandir(folder_fd) as entries:
                    below = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
                for one in below:
                    key = f"{_join(folder, one)}/{name}"
                    try:
                        state = os.stat(f"{one}/{name}", dir_fd=folder_fd, follow_symlinks=False)
                    except (FileNotFoundError, NotADirectoryError):
                        found.append((_join(folder, one), None))
                        continue
                    found.append((_join(folder, one), _listed(key, state) if stat.S_ISREG(state.st_mode) else None))
            finally:
                os.close(folder_fd)
        yield from found

    def loose(self, folder: str = "") -> Iterator[ObjectInfo]:
        """See :meth:`include.archive.stores.base.Store.loose`."""
        for name, state in self._entries(folder):
            if state is not None:
                yield _listed(_join(folder, name), state)

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """See :meth:`include.archive.stores.base.Store.unfinished`."""
        todo = [prefix.rstrip("/")]
        while todo:
            folder = todo.pop()
            for name, state in self._entries(folder, temporary=True):
                if state is None:
                    todo.append(_join(folder, name))
                elif name.startswith(_TEMP):
                    key = _join(folder, name[len(_TEMP) :].rpartition(".")[0])
                    yield Unfinished(key=key, mark=_join(folder, name), since=state.st_mtime)

    def discard(self, unfinished: Unfinished) -> bool:
        """See :meth:`include.archive.stores.base.Store.discard`."""
        folder, _, name = unfinished.mark.rpartition("/")
        return bool(self._unlink_temporary(folder, name[len(_TEMP) :]))

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """See :meth:`include.archive.stores.base.Store.read`."""
        with _errors(key), self._file(checked_key(key)) as file:
            if file is None:
                raise ObjectMissingError(f"{self.uri(key)}: no such object")
            os.lseek(file, start, os.SEEK_SET)
            while chunk := os.read(file, READ_CHUNK):
                yield chunk

    def write(
        self,
        key: str,
        *,
        media_type: str,
        size: int | None = None,
        metadata: Mapping[str, str] | None = None,
        replaces: ObjectInfo | None = None,
    ) -> LocalWriter:
        """See :meth:`include.archive.stores.base.Store.write`."""
        folder, _, name = checked_key(key).rpartition("/")
        notes = {"media-type": media_type, **(metadata or {})}
        with _errors(key):
            folder_fd = self._open_folder(folder, create=True)
            try:
                return LocalWriter(
                    key=key,
                    name=name,
                    folder_fd=folder_fd,
                    size=size,
                    metadata=notes,
                    mode=self._mode,
                    replaces=replaces,
                )
            except BaseException:
                os.close(folder_fd)
                raise

    def put_if_absent(self, key: str, data: bytes, media_type: str, metadata: Mapping[str, str] | None = None) -> bool:
        """See :meth:`include.archive.stores.base.Store.put_if_absent`."""
        try:
            with self.write(key, media_type=media_type, size=len(data), metadata=metadata) as writer:
                writer.write(memoryview(data))
                writer.commit({})
        except AlreadyExistsError:
            return False
        return True

    def delete(self, info: ObjectInfo) -> None:
        """See :meth:`include.archive.stores.base.Store.delete`."""
        folder, _, name = checked_key(info.key).rpartition("/")
        with _errors(info.key):
            try:
                folder_fd = self._open_folder(folder)
            except FileNotFoundError:
                return
            try:
                if _version(os.stat(name, dir_fd=folder_fd, follow_symlinks=False)) != info.etag:
                    raise AlreadyExistsError(f"{info.key}: another file is there than the one that was to be removed")
                os.unlink(name, dir_fd=folder_fd)
                os.fsync(folder_fd)
            except FileNotFoundError:
                return
            finally:
                os.close(folder_fd)

    def abort_stale(self, *stems: str) -> int:
        """See :meth:`include.archive.stores.base.Store.abort_stale`."""
        places = [checked_key(stem).rpartition("/") for stem in stems]
        return sum(self._unlink_temporary(folder, f"{name}.") for folder, _, name in places)

    def _unlink_temporary(self, folder: str, beginning: str) -> int:
        removed = 0
        with _errors(folder):
            try:
                folder_fd = self._open_folder(folder)
            except FileNotFoundError:
                return 0
            try:
                for entry in os.listdir(folder_fd):
                    if entry.startswith(_TEMP + beginning):
                        with suppress(FileNotFoundError):
                            os.unlink(entry, dir_fd=folder_fd)
                            removed += 1
            finally:
                os.close(folder_fd)
        return removed

    def abort_stale_below(self, folders: Sequence[str]) -> int:
        """See :meth:`include.archive.stores.base.Store.abort_stale_below`."""
        removed = 0
        todo = [checked_key(folder) for folder in folders]
        while todo:
            folder = todo.pop()
            todo += self.folders(folder)
            removed += self._unlink_temporary(folder, "")
        return removed

    def uri(self, key: str) -> str:
        """See :meth:`include.archive.stores.base.Store.uri`."""
        return f"file://{quote(str(self._root / key), safe='/=')}"

    def browse_url(self, key: str) -> str | None:
        """See :meth:`include.archive.stores.base.Store.browse_url`."""
        return None

    def _open_folder(self, folder: str, *, create: bool = False) -> int:
        """Open a folder below the root one name at a time, so that no link on the way is followed."""
        names = PurePosixPath(folder).parts
        if {"/", ".."}.intersection(names):
            raise ValueError(f"not a folder of this archive: {folder[:120]!a}")
        if create:
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        # The root itself is the deployment's own choice and may be a link.
        current = os.open(self._root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        try:
            for name in names:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=current)
                        os.fsync(current)
                below = os.open(name, _FOLDER_FLAGS, dir_fd=current)
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        return current

    @contextmanager
    def _file(self, key: str) -> Iterator[int | None]:
        """Open an object for reading; None when there is none."""
        folder, _, name = key.rpartition("/")
        try:
            folder_fd = self._open_folder(folder)
        except OSError as error:
            if error.errno in _ABSENT:
                yield None
                return
            raise
        try:
            file = os.open(name, _FILE_FLAGS, dir_fd=folder_fd)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            file = None
        finally:
            os.close(folder_fd)
        if file is None:
            yield None
            return
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise StorageDeniedError(f"{self.uri(key)} is not a plain file")
            yield file
        finally:
            os.close(file)

    def _entries(self, folder: str, *, temporary: bool = False) -> Sequence[tuple[str, os.stat_result | None]]:
        """Return the names in a folder in key order, each with its state, None for folders.

        :param temporary: unfinished ones as well.
        """
        found: dict[str, os.stat_result | None] = {}
        with _errors(folder):
            try:
                folder_fd = self._open_folder(folder)
            except FileNotFoundError:
                return []
            try:
                with os.scandir(folder_fd) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            found[entry.name] = None
                        elif entry.is_file(follow_symlinks=False) and (temporary or not entry.name.startswith(_TEMP)):
                            with suppress(FileNotFoundError):
                                found[entry.name] = entry.stat(follow_symlinks=False)
            finally:
                os.close(folder_fd)
        return sorted(found.items(), key=lambda item: item[0] + ("/" if item[1] is None else ""))

    def _walk(self, folder: str, start: str = "") -> Iterator[ObjectInfo]:
        for name, state in self._entries(folder):
            if name.startswith(start):
                key = _join(folder, name)
                if state is None:
                    yield from self._walk(key)
                else:
                    yield _listed(key, state)


class LocalWriter:
    """One file being written, see :class:`include.archive.stores.base.Writer`.

    :param folder_fd: the target folder, open; the writer closes it.
    :param mode: of the finished file; until then only its owner can read it.
    :param replaces: the file whose place it takes; by default the name must be free.
    """

    crc32: int | None = None
    """See :attr:`include.archive.stores.base.Writer.crc32`; nobody but us computes anything here."""

    md5: str | None = None
    """See :attr:`include.archive.stores.base.Writer.md5`."""

    def __init__(
        self,
        *,
        key: str,
        name: str,
        folder_fd: int,
        size: int | None,
        metadata: Mapping[str, str],
        mode: int,
        replaces: ObjectInfo | None,
    ) -> None:
        self._key = key
        self._name = name
        self._size = size
        self._metadata = dict(metadata)
        self._mode = mode
        self._replaces = replaces
        self._temp = f"{_TEMP}{name}.{secrets.token_hex(8)}"
        self._written = 0
        self._crc = 0
        self._inode: int | None = None
        self._folder_fd: int | None = folder_fd
        # O_EXCL also refuses a link that somebody put there.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: int | None = os.open(self._temp, flags, 0o600, dir_fd=folder_fd)

    def write(self, data: memoryview) -> None:
        """See :meth:`include.archive.stores.base.Writer.write`."""
        file = _still_open(self._file)
        if self._replaces is not None:
            self._crc = zlib.crc32(data, self._crc)
        self._written += len(data)
        with _errors(self._key):
            while data:
                data = data[os.write(file, data) :]

    def take(self, flow: Flow, notes: Callable[[], Mapping[str, str]]) -> ObjectInfo:
        """See :meth:`include.archive.stores.base.Writer.take`."""
        for chunk in flow.chunks():
            self.write(chunk)
        return self.commit(notes())

    def commit(self, metadata: Mapping[str, str]) -> ObjectInfo:
        """See :meth:`include.archive.stores.base.Writer.commit`."""
        file, folder = _still_open(self._file), _still_open(self._folder_fd)
        check_size(self._key, self._size, self._written)
        with _errors(self._key):
            _note(file, {**self._metadata, **metadata})
            os.fchmod(file, self._mode)
            os.fsync(file)
            if self._replaces is None:
                self._publish(folder)
            else:
                self._replace(file, folder, self._replaces)
            self._inode = os.fstat(file).st_ino
            info = _info(self._key, file)
            self._close_file()
            os.fsync(folder)
        return info

    def _publish(self, folder: int) -> None:
        try:
            os.link(self._temp, self._name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            raise AlreadyExistsError(f"{self._key} already exists") from None
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                os.stat(self._name, dir_fd=folder, follow_symlinks=False)
                raise AlreadyExistsError(f"{self._key} already exists") from None
            raise UploadLostError(f"{self._key}: the temporary file is gone; another try has begun") from None
        with suppress(FileNotFoundError):
            os.unlink(self._temp, dir_fd=folder)

    def _replace(self, file: int, folder: int, old: ObjectInfo) -> None:
        """Take the place of a file, if it is still the one that was found damaged."""
        if self._read_back(file) != self._crc:
            raise StoredBytesDifferError(f"{self._key}: the disk kept other bytes than it was given")
        try:
            damaged = os.open(self._name, _FILE_FLAGS, dir_fd=folder)
        except FileNotFoundError:
            raise ObjectMissingError(f"{self._key}: what was to be replaced is gone") from None
        try:
            # Whoever else repairs the same file waits here, and then finds that the name means another one.
            with suppress(OSError):
                fcntl.flock(damaged, fcntl.LOCK_EX)
            there, named = os.fstat(damaged), os.stat(self._name, dir_fd=folder, follow_symlinks=False)
            if there.st_ino != named.st_ino or (there.st_size, _version(there)) != (old.size, old.etag):
                raise AlreadyExistsError(f"{self._key}: another file is there than the one that was to be replaced")
            os.rename(self._temp, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        except FileNotFoundError:
            raise UploadLostError(f"{self._key}: the temporary file is gone; another try has begun") from None
        finally:
            os.close(damaged)

    def _read_back(self, file: int) -> int:
        os.lseek(file, 0, os.SEEK_SET)
        crc32 = 0
        while chunk := os.read(file, READ_CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
        return crc32

    def abort(self) -> None:
        """See :meth:`include.archive.stores.base.Writer.abort`."""
        if self._file is not None and self._folder_fd is not None:
            self._close_file()
            try:
                os.unlink(self._temp, dir_fd=self._folder_fd)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning(
                    "leftover_upload: temporary file %s of %s stays (%s)", self._temp, self._key, error.strerror
                )

    def withdraw(self) -> None:
        """See :meth:`include.archive.stores.base.Writer.withdraw`."""
        if self._inode is None or self._folder_fd is None or self._replaces is not None:
            return
        with _errors(self._key), suppress(FileNotFoundError):
            # Only the file that this writer made: the name may mean another by now.
            if os.stat(self._name, dir_fd=self._folder_fd, follow_symlinks=False).st_ino == self._inode:
                os.unlink(self._name, dir_fd=self._folder_fd)
                os.fsync(self._folder_fd)

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def __enter__(self) -> LocalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
        if self._folder_fd is not None:
            folder_fd, self._folder_fd = self._folder_fd, None
            os.close(folder_fd)


@contextmanager
def _errors(key: str) -> Iterator[None]:
    """Turn what the operating system says into what it means for the archive."""
    try:
        yield
    except ArchiveError:
        raise
    except OSError as error:
        kind: type[StorageError] = StorageUnavailableError
        if error.errno in _FULL:
            kind = StorageFullError
        elif error.errno in _DENIED:
            kind = StorageDeniedError
        raise kind(f"{key}: {os.strerror(error.errno or errno.EIO)}") from error


def _still_open(descriptor: int | None) -> int:
    if descriptor is None:
        raise ValueError("the writer is closed")
    return descriptor


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _note(file: int, metadata: Mapping[str, str]) -> None:
    try:
        for name, value in metadata.items():
            os.setxattr(file, _ATTRIBUTE + name, value.encode("ascii"))
    except OSError as error:
        # Notes save a later transfer and are never relied on alone; the file is as good without them.
        if error.errno not in _NO_ATTRIBUTES:
            raise


def _info(key: str, file: int) -> ObjectInfo:
    state = os.fstat(file)
    metadata = {}
    with suppress(OSError):
        for name in os.listxattr(file):
            if name.startswith(_ATTRIBUTE):
                metadata[name[len(_ATTRIBUTE) :]] = os.getxattr(file, name).decode("ascii", "replace")
    return replace(_listed(key, state), metadata=metadata)


def _listed(key: str, state: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=state.st_size, etag=_version(state), modified=state.st_mtime)


def _version(state: os.stat_result) -> str:
    return f"{state.st_ino:x}-{state.st_mtime_ns:x}"
