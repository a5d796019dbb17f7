"""The checksums that S3 knows, on the standard library alone."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import zlib
from typing import TYPE_CHECKING, Protocol

from tests.strict_s3.wire import S3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class Crc:
    """A running CRC that is computed least significant bit first, all ones at both ends."""

    def __init__(self, step: Callable[[bytes | memoryview, int], int], width: int) -> None:
        self._step = step
        self._width = width
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._width, "big")


@functools.cache
def _table(polynomial: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _step(polynomial: int, ones: int, data: bytes | memoryview, value: int) -> int:
    table = _table(polynomial)
    value ^= ones
    for byte in bytes(data):
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ ones


ALGORITHMS: dict[str, Callable[[], Digest]] = {
    "crc32": lambda: Crc(zlib.crc32, 4),
    "crc32c": lambda: Crc(functools.partial(_step, 0x82F63B78, 0xFFFFFFFF), 4),
    "crc64nvme": lambda: Crc(functools.partial(_step, 0x9A6C9329AC4BC9B5, 0xFFFFFFFFFFFFFFFF), 8),
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
}
HEADER = "x-amz-checksum-"


def compute(algorithm: str, chunks: Iterable[bytes]) -> str:
    digest = ALGORITHMS[algorithm]()
    for chunk in chunks:
        digest.update(chunk)
    return encode(digest.digest())


def composite(algorithm: str, parts: Iterable[str]) -> str:
    """Return the checksum of the parts' checksums, with their number behind it."""
    raw = [base64.b64decode(part) for part in parts]
    return f"{compute(algorithm, raw)}-{len(raw)}"


def encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")


def checked(algorithm: str, value: str) -> str:
    """Return a stated checksum if it has the form of one."""
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != len(ALGORITHMS[algorithm]().digest()):
        raise S3Error("InvalidRequest", f"Value for {HEADER}{algorithm} header is invalid.")
    return value


def announced(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the algorithm that a request with a body announces, and the checksum if it stands in a header.

    The checksum is None when it will follow in a trailer; both are None when there is no checksum at all.
    """
    found = [(name, headers[HEADER + name]) for name in ALGORITHMS if HEADER + name in headers]
    trailer = headers.get("x-amz-trailer", "").strip().lower()
    named = headers.get("x-amz-sdk-checksum-algorithm", "").lower()
    if len(found) + bool(trailer) > 1:
        raise S3Error("InvalidRequest", f"Expecting a single {HEADER} header. Multiple checksum types are not allowed.")
    algorithm: str | None = None
    value: str | None = None
    if trailer:
        algorithm = trailer[len(HEADER) :]
        if not trailer.startswith(HEADER) or algorithm not in ALGORITHMS:
            raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    elif found:
        algorithm, value = found[0]
        checked(algorithm, value)
    if named and algorithm is None:
        raise S3Error(
            "InvalidRequest",
            "x-amz-sdk-checksum-algorithm specified, but no corresponding checksum or x-amz-trailer header was found.",
        )
    if named and named != algorithm:
        raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    return algorithm, value


def upload_kind(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return algorithm and type that a multipart upload is begun with."""
    algorithm = headers.get("x-amz-checksum-algorithm", "").lower() or None
    kind = headers.get("x-amz-checksum-type", "").upper() or None
    if algorithm is None:
        if kind is not None:
            raise S3Error("InvalidRequest", "The x-amz-checksum-type header needs the x-amz-checksum-algorithm header.")
        return None, None
    if algorithm not in ALGORITHMS:
        raise S3Error("InvalidRequest", "Checksum algorithm provided is unsupported.")
    if kind is None:
        kind = "FULL_OBJECT" if algorithm == "crc64nvme" else "COMPOSITE"
    forbidden = {"FULL_OBJECT": ("sha1", "sha256"), "COMPOSITE": ("crc64nvme",)}
    if kind not in forbidden or algorithm in forbidden[kind]:
        raise S3Error("InvalidRequest", f"The {kind} checksum type cannot be used with the {algorithm} algorithm.")
    return algorithm, kind
