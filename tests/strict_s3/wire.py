"""HTTP/1.1 as far as S3 needs it: heads, bodies in their wrappings, answers."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK = 256 * 1024
MAX_HEAD = 64 * 1024

REASONS = {
    100: "Continue",
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    416: "Requested Range Not Satisfiable",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Slow Down",
}
STATUSES = {
    "AccessDenied": 403,
    "ConditionalRequestConflict": 409,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidRange": 416,
    "MethodNotAllowed": 405,
    "MissingContentLength": 411,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NotImplemented": 501,
    "NotModified": 304,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
}


class S3Error(Exception):
    """A refusal, as S3 words it. Codes that are not in STATUSES go with status 400."""

    def __init__(self, code: str, message: str = "", *, status: int | None = None, **fields: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message or code
        self.status = status or STATUSES.get(code, 400)
        self.fields = fields

    def reply(self) -> Reply:
        content = [("Code", self.code), ("Message", self.message), *self.fields.items(), ("RequestId", "0")]
        return Reply(self.status, xml("Error", content, namespace=False), {"Content-Type": "application/xml"})


class ClientGoneError(Exception):
    """The connection ended before the request did."""


@dataclass
class Reply:
    """An answer. A body that is not bytes comes in chunks, ``length`` bytes in all."""

    status: int
    body: bytes | Iterable[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None

    def head(self) -> bytes:
        length = len(self.body) if isinstance(self.body, bytes) else self.length
        headers = {"Server": "strict-s3", **self.headers}
        if self.status not in (204, 304):
            headers["Content-Length"] = str(length)
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Request:
    """The head of a request, its target untouched."""

    def __init__(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.method = method
        self.headers = headers
        self.raw_path, _, raw_query = target.partition("?")
        self.path = unquote(self.raw_path, errors="surrogateescape")
        pairs = [pair.partition("=") for pair in raw_query.split("&") if pair]
        self.pairs = [(unquote(name), unquote(value)) for name, _, value in pairs]
        self.query = dict(self.pairs)
        self.bucket, _, self.key = self.path.lstrip("/").partition("/")

    @classmethod
    def read(cls, file: IO[bytes]) -> Request | None:
        """Read the next head of a connection; None when the connection ended.

        :raises S3Error: when it is none.
        """
        lines, size = [], 0
        while True:
            line = file.readline(MAX_HEAD)
            size += len(line)
            if not line.endswith(b"\n"):
                return None
            if size > MAX_HEAD:
                raise S3Error("RequestHeaderSectionTooLarge")
            text = line.rstrip(b"\r\n").decode("latin-1")
            if text:
                lines.append(text)
            elif lines:
                break
        match = re.fullmatch(r"([A-Z]+) (/\S*) HTTP/1\.1", lines[0])
        if match is None:
            raise S3Error("InvalidRequest", "not an HTTP/1.1 request")
        headers: dict[str, str] = {}
        for text in lines[1:]:
            name, colon, value = text.partition(":")
            if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise S3Error("InvalidRequest", "a header line is malformed")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        return cls(match[1], match[2], headers)

    @property
    def expects_continue(self) -> bool:
        return self.headers.get("expect", "").lower() == "100-continue"


class _Declared(io.RawIOBase):
    """A body whose length the head told."""

    def __init__(self, file: Any, length: int) -> None:
        self._file = file
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        count: int = self._file.readinto1(view) if view else 0
        if view and not count:
            raise ClientGoneError
        self._left -= count
        return count


class _Chunked(io.RawIOBase):
    """A body with ``Transfer-Encoding: chunked``."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left and not self._ended:
            self._left = _chunk_size(self._file.readline(1024))
            if not self._left:
                self._ended = True
                while self._file.readline(MAX_HEAD) not in (b"\r\n", b"\n", b""):
                    pass
        view = memoryview(buffer)[: self._left]
        count: int = self._file.readinto1(view) if view else 0
        if view and not count:
            raise ClientGoneError
        self._left -= count
        if count and not self._left:
            self._file.readline(8)
        return count


def _chunk_size(line: bytes) -> int:
    if not line.endswith(b"\n"):
        raise ClientGoneError
    try:
        return int(line.split(b";")[0].strip(), 16)
    except ValueError:
        raise S3Error("InvalidRequest", "a chunk has no valid size") from None


class Body:
    """The body of one request. ``trailers`` are known when it was read to its end."""

    def __init__(self, file: IO[bytes], headers: dict[str, str]) -> None:
        self.trailers: dict[str, str] = {}
        self.declared = True
        self._aws_chunked = headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
        self._decoded_length = headers.get("x-amz-decoded-content-length")
        raw: io.RawIOBase
        if headers.get("transfer-encoding", "").lower() == "chunked":
            raw = _Chunked(file)
            self.declared = self._decoded_length is not None
        else:
            length = headers.get("content-length", "0")
            if not re.fullmatch(r"\d{1,16}", length):
                raise S3Error("InvalidRequest", "Content-Length is no number")
            raw = _Declared(file, int(length))
            self.declared = "content-length" in headers
        self._file = io.BufferedReader(raw, CHUNK)

    def chunks(self) -> Iterator[bytes]:
        """Yield what the client meant to send.

        :raises ClientGoneError: when the connection ended too early.
        """
        if not self._aws_chunked:
            while chunk := self._file.read1(CHUNK):
                yield chunk
            return
        total = 0
        while size := _chunk_size(self._file.readline(1024)):
            total += size
            while size:
                chunk = self._file.read(min(size, CHUNK))
                if not chunk:
                    raise S3Error("IncompleteBody", "The request body terminated unexpectedly")
                size -= len(chunk)
                yield chunk
            if self._file.readline(8) != b"\r\n":
                raise S3Error("InvalidRequest", "a chunk is longer than it said")
        while line := self._file.readline(1024).strip():
            name, _, value = line.decode("latin-1").partition(":")
            self.trailers[name.strip().lower()] = value.strip()
        if self._file.read1(1):  # which also takes the end of HTTP's own chunks off the connection
            raise S3Error("InvalidRequest", "The body goes on behind its trailers")
        if str(total) != self._decoded_length:
            raise S3Error("IncompleteBody", "The body is not as long as x-amz-decoded-content-length says")

    def drain(self) -> None:
        while self._file.read1(CHUNK):
            pass


def xml(name: str, content: Any, *, namespace: bool = True) -> bytes:
    """Write a document: text, or (name, content) pairs; pairs without a value are left out."""
    attribute = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if namespace else ""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}{attribute}>{_inner(content)}</{name}>'.encode()


def _inner(content: Any) -> str:
    if isinstance(content, (list, tuple)):
        return "".join(f"<{name}>{_inner(value)}</{name}>" for name, value in content if value is not None)
    if isinstance(content, bool):
        return str(content).lower()
    return escape(str(content))
