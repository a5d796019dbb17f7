"""What the server holds: blobs, objects, unfinished uploads, and every write that ever succeeded."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.strict_s3 import checksums
from tests.strict_s3.wire import CHUNK, S3Error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SPILL = 1024 * 1024


class _Spill:
    """A file that goes when nobody refers to it any more."""

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.NamedTemporaryFile(dir=folder, delete=False, buffering=0)  # noqa: SIM115
        self.path = Path(self.file.name)
        weakref.finalize(self, self.path.unlink, missing_ok=True)


class Blob:
    """Bytes that never change, in memory or in a file."""

    def __init__(self, size: int, data: bytes = b"", spill: _Spill | None = None) -> None:
        self.size = size
        self._data = data
        self._spill = spill

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        left = (self.size if end is None else end) - start
        if self._spill is None:
            yield self._data[start : start + left]
            return
        with self._spill.path.open("rb", buffering=0) as file:
            file.seek(start)
            while left and (chunk := file.read(min(left, CHUNK))):
                left -= len(chunk)
                yield chunk

    def flipped(self, bit: int, folder: Path) -> Blob:
        copy = Intake(folder)
        position = 0
        for chunk in self.chunks():
            place = bit // 8 - position
            if 0 <= place < len(chunk):
                chunk = chunk[:place] + bytes([chunk[place] ^ 1 << bit % 8]) + chunk[place + 1 :]
            position += len(chunk)
            copy.write(chunk)
        return copy.blob()


class Intake:
    """Bytes on their way in, hashed as they come."""

    def __init__(self, folder: Path, algorithm: str | None = None) -> None:
        self.size = 0
        self.algorithm = algorithm
        self._folder = folder
        self._buffer = bytearray()
        self._spill: _Spill | None = None
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._checksum = checksums.ALGORITHMS[algorithm]() if algorithm else None

    def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        for digest in (self._md5, self._sha256, self._checksum):
            if digest is not None:
                digest.update(chunk)
        if self._spill is None and self.size > SPILL:
            self._spill = _Spill(self._folder)
            self._spill.file.write(self._buffer)
            self._buffer.clear()
        if self._spill is None:
            self._buffer += chunk
        else:
            self._spill.file.write(chunk)

    def blob(self) -> Blob:
        if self._spill is None:
            return Blob(self.size, data=bytes(self._buffer))
        self._spill.file.close()
        return Blob(self.size, spill=self._spill)

    @property
    def md5(self) -> bytes:
        return self._md5.digest()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def checksum(self) -> str | None:
        return checksums.encode(self._checksum.digest()) if self._checksum is not None else None


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    blobs: tuple[Blob, ...]
    size: int
    sha256: str
    etag: str
    headers: Mapping[str, str]
    metadata: Mapping[str, str]
    algorithm: str | None = None
    checksum: str | None = None
    checksum_type: str | None = None
    modified: float = field(default_factory=time.time)
    tampered: bool = False

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self.size if end is None else end
        position = 0
        for blob in self.blobs:
            first, last = max(start - position, 0), min(end - position, blob.size)
            if first < last:
                yield from blob.chunks(first, last)
            position += blob.size

    def describe(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "sha256": self.sha256,
            "etag": self.etag,
            "headers": dict(self.headers),
            "metadata": dict(self.metadata),
            "checksum_algorithm": self.algorithm,
            "checksum": self.checksum,
            "checksum_type": self.checksum_type,
            "modified": self.modified,
            "tampered": self.tampered,
        }


@dataclass(frozen=True, kw_only=True)
class Part:
    blob: Blob
    etag: str
    algorithm: str | None
    checksum: str | None
    modified: float = field(default_factory=time.time)


@dataclass(kw_only=True)
class Upload:
    key: str
    algorithm: str | None
    checksum_type: str | None
    headers: Mapping[str, str]
    metadata: Mapping[str, str]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.time)
    parts: dict[int, Part] = field(default_factory=dict)


class Bucket:
    """One bucket. Whoever changes it holds ``lock``, so that a condition and what it guards are one step."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        with self.lock:
            self.objects: dict[str, StoredObject] = {}
            self.uploads: dict[str, Upload] = {}
            self.writes: list[dict[str, Any]] = []

    def publish(
        self,
        key: str,
        new: StoredObject,
        conditions: Mapping[str, str],
        *,
        number: int,
        operation: str,
        upload_id: str | None = None,
    ) -> None:
        """Make an object visible if the conditions hold, and note whether it took another one's place.

        :param conditions: ``if-match`` and ``if-none-match``, as far as given.
        """
        with self.lock:
            if upload_id is not None:
                self.upload(key, upload_id)
            old = self.objects.get(key)
            check_write(old, conditions)
            self.objects[key] = new
            if upload_id is not None:
                del self.uploads[upload_id]
            self.writes.append(
                {
                    "number": number,
                    "time": time.time(),
                    "operation": operation,
                    "key": key,
                    "size": new.size,
                    "sha256": new.sha256,
                    "overwrote": old.sha256 if old is not None else None,
                }
            )

    def delete(self, key: str, if_match: str | None, *, number: int) -> None:
        with self.lock:
            old = self.objects.get(key)
            if if_match == "*" and old is None:
                raise precondition_failed("If-Match")
            if if_match is not None and if_match != "*":
                check_write(old, {"if-match": if_match})
            if old is not None:
                del self.objects[key]
                self.writes.append(
                    {"number": number, "time": time.time(), "operation": "DeleteObject", "key": key, "overwrote": None}
                )

    def upload(self, key: str, upload_id: str) -> Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise S3Error(
                "NoSuchUpload",
                "The specified multipart upload does not exist. The upload ID may be invalid, "
                "or the upload may have been aborted or completed.",
                UploadId=upload_id,
            )
        return upload

    def describe(self) -> dict[str, Any]:
        with self.lock:
            counts: dict[str, int] = {}
            for write in self.writes:
                counts[write["key"]] = counts.get(write["key"], 0) + (write["overwrote"] is not None)
            return {
                "objects": {
                    key: {**self.objects[key].describe(), "overwritten": counts.get(key, 0)}
                    for key in sorted(self.objects)
                },
                "uploads": [
                    {
                        "key": upload.key,
                        "upload_id": upload.id,
                        "started": upload.started,
                        "parts": {number: part.blob.size for number, part in sorted(upload.parts.items())},
                    }
                    for upload in self.uploads.values()
                ],
                "writes": list(self.writes),
            }


def check_write(old: StoredObject | None, conditions: Mapping[str, str]) -> None:
    """Raise unless a write may go ahead.

    :raises S3Error: ``PreconditionFailed``, or ``NoSuchKey`` when there is nothing to match.
    """
    none_match, match = conditions.get("if-none-match"), conditions.get("if-match")
    if none_match is not None:
        if none_match != "*":
            raise S3Error("NotImplemented", "A write knows If-None-Match: * only")
        if old is not None:
            raise precondition_failed("If-None-Match")
    if match is not None:
        if old is None:
            raise S3Error("NoSuchKey", "The specified key does not exist.")
        if not matches(match, old.etag):
            raise precondition_failed("If-Match")


def matches(header: str, etag: str) -> bool:
    tags = [tag.strip().strip('"') for tag in header.split(",")]
    return "*" in tags or etag.strip('"') in tags


def precondition_failed(condition: str) -> S3Error:
    message = "At least one of the pre-conditions you specified did not hold"
    return S3Error("PreconditionFailed", message, Condition=condition)
