"""The operations of S3 without boto3 in between, which costs three to four times what the bytes themselves do.

The payload is not signed again, since a checksum goes with it: in a header where it is known beforehand, else as a
trailer behind the last byte, as AWS's SDKs do it by default. A whole object goes with the SHA-256 that the archive
wants anyway, a part of an upload with its CRC-32, since only those of the parts add up to one of the whole. Stores that
know no trailers say by an ETag what they got.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import zlib
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from include.archive.errors import IntegrityError
from include.archive.stores import s3_xml
from include.archive.stores.s3_access import Access, RefusedError, Reply, Request, UnansweredError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from include.archive.stores.s3_xml import Element, Objects, Uploads

CHECKSUM = "x-amz-checksum-"
"""What the names of checksums' headers begin with."""

_CEPH_ID = re.compile(r"tx[0-9a-f]{21}-[0-9a-f]+-[0-9a-f]+-")
_UNQUOTED = "-_.~"
_CODE = re.compile(rb"<Code>([^<]{1,64})</Code>")
_FRAME_BYTES = 1024 * 1024
_UNSIGNED = "UNSIGNED-PAYLOAD"
_UNSIGNED_STREAM = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

_Read = TypeVar("_Read")


class Wire:
    """One bucket, as a place to send requests to. Each is sent once.

    Every method raises :class:`RefusedError` when the store refuses, and :class:`UnansweredError` when there is no
    reply, or none that can be read.

    :param access: how the bucket is reached.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self.is_ceph = False
        """Whether a reply had an id as Ceph's gateway makes them. Many of its versions know no trailers, and the older
        ones say so only when they have got all of a body."""

    def put(self, key: str, body: bytes | memoryview, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Send an object whose checksum is among the headers.

        :return: the reply's headers, names in lower case.
        """
        return self._send("PutObject", "PUT", key, body=body, headers=headers, payload=_UNSIGNED, proof="etag")[0]

    def head(self, key: str) -> Mapping[str, str]:
        """Ask for what the store knows of an object, checksums included; returns the same."""
        headers = {"X-Amz-Checksum-Mode": "ENABLED"}
        return self._send("HeadObject", "HEAD", key, headers=headers, payload=_UNSIGNED, proof="etag")[0]

    def put_stream(
        self, key: str, body: Body, headers: Mapping[str, str], query: Mapping[str, str] | None = None
    ) -> Mapping[str, str]:
        """Send an object, or a part of one, that is read while it is sent; raises besides whatever the body raises.

        The store takes it only when its last byte has arrived, and the checksum behind it, so a body that raises at its
        end is never stored.

        :return: the reply's headers, names in lower case.
        """
        operation, all_headers = "UploadPart" if query else "PutObject", {**headers, **body.headers()}
        try:
            return self._send(
                operation, "PUT", key, query or {}, body, all_headers, payload=body.payload, proof="etag"
            )[0]
        except UnansweredError:
            if body.failure is not None:
                raise body.failure from None  # it looks like a fault of the connection
            raise

    def put_part(self, key: str, upload_id: str, number: int, body: bytes, headers: Mapping[str, str]) -> str:
        """Send a part whose checksum is among the headers; return its ETag."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self._send("UploadPart", "PUT", key, query, body, headers, payload=_UNSIGNED, proof="etag")[0]["etag"]

    def create_upload(self, key: str, headers: Mapping[str, str]) -> tuple[str, bool]:
        """Begin an upload; return its id, and whether it was asked for more than once."""
        _, content = self._send("CreateMultipartUpload", "POST", key, {"uploads": ""}, headers=headers)
        return _read(content, "InitiateMultipartUploadResult", lambda root: _present(root["UploadId"])), False

    def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Mapping[str, Any]], headers: Mapping[str, str]
    ) -> None:
        """Make an upload visible. S3 may answer that all is well, and behind it that nothing is."""
        body, query = s3_xml.parts(parts), {"uploadId": upload_id}
        _, content = self._send("CompleteMultipartUpload", "POST", key, query, body, headers)
        _read(content, "CompleteMultipartUploadResult", lambda root: None)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove an upload."""
        self._send("AbortMultipartUpload", "DELETE", key, {"uploadId": upload_id})

    def delete(self, key: str, headers: Mapping[str, str]) -> None:
        """Remove an object."""
        self._send("DeleteObject", "DELETE", key, headers=headers)

    def objects(self, prefix: str, delimiter: str, following: str | None) -> Objects:
        """List objects.

        :param delimiter: ends what is only named as a folder; may be empty.
        :param following: what the page before gave for this.
        """
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
        query |= {"delimiter": delimiter} if delimiter else {}
        query |= {"continuation-token": following} if following else {}
        _, content = self._send("ListObjectsV2", "GET", "", query)
        return _read(content, "ListBucketResult", s3_xml.objects)

    def uploads(self, prefix: str, following: tuple[str, str] | None) -> Uploads:
        """List unfinished uploads.

        :param following: what the page before gave for this.
        """
        query = {"uploads": "", "prefix": prefix}
        query |= {"key-marker": following[0], "upload-id-marker": following[1]} if following else {}
        _, content = self._send("ListMultipartUploads", "GET", "", query)
        return _read(content, "ListMultipartUploadsResult", s3_xml.uploads)

    def get(self, key: str, start: int) -> tuple[Mapping[str, str], Iterator[bytes]]:
        """Read an object.

        :param start: how many bytes to leave out at the beginning.
        :return: the reply's headers, names in lower case, and the bytes.
        """
        headers = {"Range": f"bytes={start}-"} if start else {"X-Amz-Checksum-Mode": "ENABLED"}
        reply = self._reply("GetObject", "GET", key, headers=headers, stream_output=True)
        if reply.status_code != (206 if start else 200):
            raise _refusal(reply)
        content = (piece for piece in (reply.content,) if piece)
        return _lower(reply.headers), reply.chunks or content

    def _send(
        self,
        operation: str,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
        *,
        payload: str | None = None,
        proof: str = "",
    ) -> tuple[Mapping[str, str], bytes]:
        """Return the headers, names in lower case, and the body of a reply that tells of success.

        :param payload: what is signed in the place of the body.
        :param proof: a header without which it is none.
        """
        reply = self._reply(operation, method, key, query, body, headers, payload=payload)
        reply_headers = _lower(reply.headers)
        self.is_ceph = self.is_ceph or _CEPH_ID.match(reply_headers.get("x-amz-request-id", "")) is not None
        if reply.status_code not in {200, 204} or (proof and proof not in reply_headers):
            raise _refusal(reply)
        return reply_headers, reply.content

    def _reply(
        self,
        operation: str,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
        *,
        payload: str | None = None,
        stream_output: bool = False,
    ) -> Reply:
        address = self._access.address
        is_whole = not key and address.count("/") > 2  # the bucket itself, named in the path
        url = address if is_whole else f"{address}/{quote(key, safe=_UNQUOTED + '/')}"
        if query:
            url += "?" + urlencode(sorted(query.items()), safe=_UNQUOTED, quote_via=quote)
        # Every body that isn't an iterable has a length, and some stores want to hear of that of an empty one.
        length = {"Content-Length": str(len(body))} if method in {"PUT", "POST"} and not isinstance(body, Body) else {}
        signed = self._signed(method, url, {**(headers or {}), **length}, payload or hashlib.sha256(body).hexdigest())
        return self._transmit(Request(operation, method, url, signed, body, stream_output))

    def _transmit(self, request: Request) -> Reply:
        return self._access.transmit(request)

    def _signed(self, method: str, url: str, headers: Mapping[str, str], payload: str) -> dict[str, str]:
        """Return headers with a signature, version 4, of all of them but the length.

        As botocore's signer makes it, which takes five times as long.
        """
        credentials, region = self._access.credentials(), self._access.region
        if credentials is None:
            raise UnansweredError("NoCredentialsError")
        address = urlsplit(url)
        moment = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
        scope = f"{moment[:8]}/{region}/s3/aws4_request"
        host = address.netloc.removesuffix({"http": ":80", "https": ":443"}[address.scheme])
        signed = {"Host": host, **headers, "X-Amz-Date": moment, "X-Amz-Content-SHA256": payload}
        if credentials.token:
            signed["X-Amz-Security-Token"] = credentials.token
        fields = sorted((name.lower(), " ".join(signed[name].split())) for name in signed if name != "Content-Length")
        names = ";".join(name for name, _ in fields)
        lines = [method, address.path, address.query]
        lines += [*(f"{name}:{value}" for name, value in fields), "", names, payload]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
        key = _signing_key(credentials.secret_key, moment[:8], region)
        signed["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, "
            f"Signature={hmac.digest(key, text.encode(), 'sha256').hex()}"
        )
        return signed


@lru_cache(maxsize=4)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    return key


def _refusal(reply: Any) -> RefusedError:
    code = _CODE.search(reply.content or b"")
    return RefusedError(reply.status_code, code[1].decode("ascii", "replace") if code else "")


def _read(content: bytes, name: str, reading: Callable[[Element], _Read]) -> _Read:
    """Read an answer of that name; S3 may have begun it with success and ended it with an error."""
    try:
        root = s3_xml.read(content)
        if root.name == "Error":
            raise RefusedError(200, root["Code"])
        if root.name != name:
            raise UnansweredError("UnreadableReply")
        return reading(root)
    except ValueError as error:
        raise UnansweredError("UnreadableReply") from error


def _present(text: str) -> str:
    if not text:
        raise s3_xml.UnreadableError("what was asked for is missing")
    return text


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    # Some stores change the case of metadata names.
    return {name.lower(): value for name, value in headers.items()}


class Body:
    """Chunks in the form ``aws-chunked``: each behind its length, a checksum of them all behind the last.

    :param chunks: together as many bytes as announced.
    :param size: how many these are.
    :param sha256: tells their hash once all were taken; without it, their CRC-32 is computed on the way.
    :param crc32: tells that CRC-32 once all were taken, where it is computed elsewhere.
    :param is_over: tells, while the store takes nothing, whether nobody wants it sent any more.
    """

    payload = _UNSIGNED_STREAM
    """What is signed in its place."""

    def __init__(
        self,
        chunks: Iterator[memoryview],
        size: int,
        sha256: Callable[[], str] | None = None,
        *,
        crc32: Callable[[], int] | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.size = size
        self.crc32 = 0
        self.md5: str | None = None
        """Once all was taken, that of what went without a checksum; lower-case hex."""
        self.algorithm = "sha256" if sha256 else "crc32"
        self.is_over = is_over
        self._sha256 = sha256
        self._known_crc32 = crc32
        self.failure: BaseException | None = None
        self._chunks = chunks

    @property
    def framed_bytes(self) -> int:
        """Length of the whole with all that is put around the chunks, which go in frames of one length."""
        whole, rest = divmod(self.size, _FRAME_BYTES)
        frames = whole * _framed(_FRAME_BYTES) + (_framed(rest) if rest else 0)
        return frames + len(self._end(bytes(32 if self._sha256 else 4)))

    def headers(self) -> dict[str, str]:
        """Return the headers that tell of its form."""
        return {
            "Content-Encoding": "aws-chunked",
            "Content-Length": str(self.framed_bytes),
            "X-Amz-Decoded-Content-Length": str(self.size),
            "X-Amz-Trailer": CHECKSUM + self.algorithm,
        }

    def __iter__(self) -> Iterator[bytes | memoryview]:
        try:
            yield from self._pieces()
        except GeneratorExit:
            raise  # the connection broke, which is no fault of the body
        except BaseException as error:
            self.failure = error
            raise

    def _pieces(self) -> Iterator[bytes | memoryview]:
        room = 0
        for chunk, remaining in self._measured():
            if self._sha256 is None and self._known_crc32 is None:
                self.crc32 = zlib.crc32(chunk, self.crc32)
            rest = chunk
            while rest:
                if not room:
                    room = min(_FRAME_BYTES, remaining + len(rest))
                    yield b"%x\r\n" % room
                piece = rest[:room]
                yield piece
                room -= len(piece)
                rest = rest[len(piece) :]
                if not room:
                    yield b"\r\n"
        if self._known_crc32 is not None:
            self.crc32 = self._known_crc32()
        yield self._end(bytes.fromhex(self._sha256()) if self._sha256 else self.crc32.to_bytes(4, "big"))

    def _measured(self) -> Iterator[tuple[memoryview, int]]:
        """Yield each chunk with how many bytes are to follow it; raise where there are more or fewer in all."""
        remaining = self.size
        for chunk in self._chunks:
            if len(chunk) > remaining:
                raise IntegrityError(f"a body went on after the {self.size} bytes that were announced")
            remaining -= len(chunk)
            yield chunk, remaining
        if remaining:
            raise IntegrityError(f"a body ended {remaining} bytes before the {self.size} that were announced")

    def _end(self, checksum: bytes) -> bytes:
        return b"0\r\n%s%s:%s\r\n\r\n" % (CHECKSUM.encode(), self.algorithm.encode(), base64.b64encode(checksum))


class BareBody(Body):
    """Chunks as they are, for stores that know no trailers; the last byte waits until all has been taken."""

    payload = _UNSIGNED

    def headers(self) -> dict[str, str]:
        """See :meth:`Body.headers`."""
        return {"Content-Length": str(self.size)}

    def _pieces(self) -> Iterator[bytes | memoryview]:
        md5, held = hashlib.md5(usedforsecurity=False), b""
        for chunk, _ in self._measured():
            if not chunk:
                continue
            yield held
            md5.update(chunk)
            held = bytes(chunk[-1:])
            yield chunk[:-1]
        self.md5 = md5.hexdigest()
        yield held


def _framed(size: int) -> int:
    return len(b"%x\r\n" % size) + size + len(b"\r\n")


def base64_crc32(crc32: int) -> str:
    """Return a CRC-32 as S3's headers hold it."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode("ascii")


def base64_sha256(sha256: str) -> str:
    """Return a SHA-256, given in hex, as S3's headers hold it."""
    return base64.b64encode(bytes.fromhex(sha256)).decode("ascii")


def combined_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two bodies one behind the other, of which the CRC-32 of each is known.

    As zlib's crc32_combine, which Python's module lacks: the first is multiplied by x to the power of the second's
    length in bits, modulo the polynomial; bits are reflected, so x^0 is the highest.
    """
    return _times(_power(8 * second_bytes), first) ^ second


@lru_cache(maxsize=4)  # nearly all parts of an object are of one length
def _power(exponent: int) -> int:
    square, power = 1 << 30, 1 << 31
    while exponent:
        if exponent & 1:
            power = _times(square, power)
        square = _times(square, square)
        exponent >>= 1
    return power


def _times(one: int, other: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (0xEDB88320 if other & 1 else 0)
    return product
