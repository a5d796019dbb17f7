"""Sending objects to S3 without boto3 in between, which costs three to four times what the bytes themselves do.

Requests are signed by botocore's signer and travel on the client's own connections, so credentials, proxies,
certificates and addresses are those of the client. The payload is not signed again, since its CRC-32 goes with it: in a
header where it is known beforehand, else as a trailer behind the last byte, as AWS's SDKs do it by default.
"""

from __future__ import annotations

import base64
import re
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ClientError

from include.archive.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mypy_boto3_s3 import S3Client

_TRAILER = "x-amz-checksum-crc32"
_CODE = re.compile(rb"<Code>([^<]{1,64})</Code>")
_FRAME_BYTES = 1024 * 1024
_OF_ANOTHER_KIND = re.compile(r"^arn:|--x-s3$")
"""Access points and directory buckets are signed in ways of their own."""


class Wire:
    """One bucket, as a place to send bodies to.

    :param client: whose endpoint, credentials and connections are used.
    :param bucket: the bucket.
    """

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client: Any = client
        self._bucket = bucket
        self._address: str | None = None

    @staticmethod
    def reaches(bucket: str) -> bool:
        """Tell whether a bucket is of the plain kind that is signed in the plain way."""
        return _OF_ANOTHER_KIND.search(bucket) is None

    def put(self, key: str, body: bytes | memoryview, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Send a body whose checksum is among the headers.

        :return: the reply's headers, names in lower case.
        :raises ClientError: when the store refuses.
        :raises BotoCoreError: when there is no reply.
        """
        return self._send("PUT", key, {}, body, dict(headers), {})

    def head(self, key: str) -> Mapping[str, str]:
        """Ask for what the store knows of an object, checksums included; returns and raises as :meth:`put` does."""
        return self._send("HEAD", key, {}, None, {"X-Amz-Checksum-Mode": "ENABLED"}, {})

    def put_stream(
        self, key: str, body: Body, headers: Mapping[str, str], query: Mapping[str, str] | None = None
    ) -> Mapping[str, str]:
        """Send a body that is read while it is sent; raises as :meth:`put` does, and whatever the body raises.

        The store takes it only when the last byte and the checksum behind it have arrived, so a body that raises at
        its end is never stored.
        """
        all_headers = {
            **headers,
            "Content-Encoding": "aws-chunked",
            "Content-Length": str(body.framed_bytes),
            "X-Amz-Decoded-Content-Length": str(body.size),
            "X-Amz-Trailer": _TRAILER,
        }
        context = {"checksum": {"request_algorithm": {"in": "trailer"}}}
        try:
            return self._send("PUT", key, query or {}, body, all_headers, context)
        except BotoCoreError:
            if body.failure is not None:
                raise body.failure from None  # botocore takes everything that is raised here for one of its own
            raise

    def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        body: Any,
        headers: dict[str, str],
        context: dict[str, Any],
    ) -> Mapping[str, str]:
        if self._address is None:
            # Only botocore knows how this bucket is addressed; a presigned URL would show the global endpoint.
            operation = self._client.meta.service_model.operation_model("PutObject")
            place = {"Bucket": self._bucket, "Key": "x"}
            self._address = self._client._resolve_endpoint_ruleset(operation, place, {})[0].rstrip("/")
        url = f"{self._address}/{quote(key, safe='/-_.~')}" + (f"?{urlencode(query)}" if query else "")
        request = AWSRequest(method=method, url=url, headers=headers)
        request.context.update(context, client_config=_UNSIGNED_PAYLOAD)
        signer = self._client._request_signer
        signer.get_auth_instance("s3", self._client.meta.region_name, "s3v4").add_auth(request)
        request.data = body
        prepared: Any = request.prepare()
        if "Content-Length" in headers:
            # What prepare() says of a body that it can't measure.
            prepared.headers.pop("Transfer-Encoding", None)
            prepared.headers["Content-Length"] = headers["Content-Length"]
        # As the client does: who watches its requests, or answers in the place of S3, sees these as well.
        operation = "HeadObject" if method == "HEAD" else "UploadPart" if query else "PutObject"
        _, reply = self._client.meta.events.emit_until_response(f"before-send.s3.{operation}", request=prepared)
        if reply is None:
            reply = self._client._endpoint.http_session.send(prepared)
        if reply.status_code == 200 and "ETag" in reply.headers:
            return {name.lower(): value for name, value in reply.headers.items()}
        code = _CODE.search(reply.content or b"")
        refusal: Any = {
            "Error": {"Code": code[1].decode("ascii", "replace") if code else ""},
            "ResponseMetadata": {"HTTPStatusCode": reply.status_code},
        }
        raise ClientError(refusal, operation)


class _Config:
    s3 = {"payload_signing_enabled": False}  # noqa: RUF012 - read as botocore reads a client's config


_UNSIGNED_PAYLOAD = _Config()


class Body:
    """Chunks in the form ``aws-chunked``: each behind its length, the CRC-32 of them all behind the last.

    :param chunks: together as many bytes as announced.
    :param size: how many these are.
    """

    def __init__(self, chunks: Iterator[memoryview], size: int) -> None:
        self.size = size
        self.crc32 = 0
        self.failure: BaseException | None = None
        self._chunks = chunks

    @property
    def framed_bytes(self) -> int:
        """Length of the whole with all that is put around the chunks, which go in frames of one length."""
        whole, rest = divmod(self.size, _FRAME_BYTES)
        frames = whole * _framed(_FRAME_BYTES) + (_framed(rest) if rest else 0)
        return frames + len(self._end(0))

    def __iter__(self) -> Iterator[bytes | memoryview]:
        try:
            room, remaining = 0, self.size
            for chunk in self._chunks:
                if len(chunk) > remaining:
                    raise IntegrityError(f"a body went on after the {self.size} bytes that were announced")
                self.crc32 = zlib.crc32(chunk, self.crc32)
                rest = chunk
                while rest:
                    if not room:
                        room = min(_FRAME_BYTES, remaining)
                        yield b"%x\r\n" % room
                    piece = rest[:room]
                    yield piece
                    room -= len(piece)
                    remaining -= len(piece)
                    rest = rest[len(piece) :]
                    if not room:
                        yield b"\r\n"
            if remaining:
                raise IntegrityError(f"a body ended {remaining} bytes before the {self.size} that were announced")
            yield self._end(self.crc32)
        except GeneratorExit:
            raise  # the connection broke, which is no fault of the body
        except BaseException as error:
            self.failure = error
            raise

    @staticmethod
    def _end(crc32: int) -> bytes:
        return f"0\r\n{_TRAILER}:{base64_crc32(crc32)}\r\n\r\n".encode()


def _framed(size: int) -> int:
    return len(b"%x\r\n" % size) + size + len(b"\r\n")


def base64_crc32(crc32: int) -> str:
    """Return a CRC-32 as S3's headers hold it."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode("ascii")


def combined_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two bodies one behind the other, of which the CRC-32 of each is known.

    As zlib's crc32_combine, which Python's module lacks: the first is multiplied by x to the power of the second's
    length in bits, modulo the polynomial; bits are reflected, so x^0 is the highest.
    """
    square, factor, exponent = 1 << 30, 1 << 31, 8 * second_bytes
    while exponent:
        if exponent & 1:
            factor = _times(square, factor)
        square = _times(square, square)
        exponent >>= 1
    return _times(factor, first) ^ second


def _times(one: int, other: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (0xEDB88320 if other & 1 else 0)
    return product
