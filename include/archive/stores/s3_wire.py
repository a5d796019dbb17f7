"""Sending objects to S3 without boto3 in between, which costs three to four times what the bytes themselves do.

Requests are signed with the client's credentials and travel on its own connections, so proxies, certificates and
addresses are the client's too. The payload is not signed again, since a checksum goes with it: in a header where it is
known beforehand, else as a trailer behind the last byte, as AWS's SDKs do it by default. A whole object goes with the
SHA-256 that the archive wants anyway, a part of an upload with its CRC-32, since only those of the parts add up to one
of the whole.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import ssl
import zlib
from datetime import datetime, timezone
from functools import lru_cache
from http.client import HTTPException, HTTPResponse
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from urllib3 import exceptions as urllib3_errors
from urllib3.util import Timeout

from include.archive.errors import IntegrityError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

    from mypy_boto3_s3 import S3Client
    from urllib3 import HTTPConnectionPool

USER_AGENT = "recall-audio-archive"

CHECKSUM = "x-amz-checksum-"
"""What the names of checksums' headers begin with."""

_UNQUOTED = "-_.~"
_LONGEST_REPLY = 64 * 1024
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
        self._pool: HTTPConnectionPool | None = None

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
        return self._send("PUT", key, {}, body, {**headers, "Content-Length": str(len(body))})

    def head(self, key: str) -> Mapping[str, str]:
        """Ask for what the store knows of an object, checksums included; returns and raises as :meth:`put` does."""
        return self._send("HEAD", key, {}, b"", {"X-Amz-Checksum-Mode": "ENABLED"})

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
            "X-Amz-Trailer": CHECKSUM + body.algorithm,
        }
        try:
            return self._send("PUT", key, query or {}, body, all_headers, payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER")
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
        headers: Mapping[str, str],
        payload: str = "UNSIGNED-PAYLOAD",
    ) -> Mapping[str, str]:
        if self._address is None:
            # Only botocore knows how this bucket is addressed; a presigned URL would show the global endpoint.
            operation = self._client.meta.service_model.operation_model("PutObject")
            place = {"Bucket": self._bucket, "Key": "x"}
            self._address = self._client._resolve_endpoint_ruleset(operation, place, {})[0].rstrip("/")
        url = f"{self._address}/{quote(key, safe=_UNQUOTED + '/')}"
        if query:
            url += "?" + urlencode(sorted(query.items()), safe=_UNQUOTED, quote_via=quote)
        signed: Any = self._signed(method, url, headers, payload)
        request = AWSPreparedRequest(method, url, signed, body, stream_output=False)
        # As the client does: who watches its requests, or answers in the place of S3, sees these as well.
        operation = "HeadObject" if method == "HEAD" else "UploadPart" if query else "PutObject"
        _, reply = self._client.meta.events.emit_until_response(f"before-send.s3.{operation}", request=request)
        if reply is None:
            reply = self._transmit(request)
        reply_headers = {name.lower(): value for name, value in reply.headers.items()}
        if reply.status_code == 200 and "etag" in reply_headers:
            return reply_headers
        code = _CODE.search(reply.content or b"")
        refusal: Any = {
            "Error": {"Code": code[1].decode("ascii", "replace") if code else ""},
            "ResponseMetadata": {"HTTPStatusCode": reply.status_code},
        }
        raise ClientError(refusal, operation)

    def _signed(self, method: str, url: str, headers: Mapping[str, str], payload: str) -> dict[str, str]:
        """Return headers with a signature, version 4, of all of them but the length.

        As botocore's signer makes it, which takes five times as long.
        """
        keeper = self._client._request_signer._credentials
        if keeper is None:
            raise NoCredentialsError
        credentials = keeper.get_frozen_credentials()
        address, region = urlsplit(url), self._client.meta.region_name
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

    def _transmit(self, request: Any) -> Any:
        """Send a signed request on one of the client's connections; returns and raises as its own session does.

        That session, and urllib3 below it, take ten times as long for this as the request itself does.
        """
        session = self._client._endpoint.http_session
        if session._proxy_config.proxy_url_for(request.url):
            return session.send(request)
        if self._pool is None:
            pool = session._manager.connection_from_url(request.url)
            session._setup_ssl_cert(pool, request.url, session._verify)
            self._pool = pool
        try:
            return _exchanged(self._pool, request)
        except urllib3_errors.NewConnectionError as error:
            raise EndpointConnectionError(endpoint_url=request.url, error=error) from error
        except (TimeoutError, urllib3_errors.TimeoutError) as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except (ssl.SSLError, urllib3_errors.SSLError) as error:
            raise SSLError(endpoint_url=request.url, error=error) from error
        except (OSError, HTTPException, urllib3_errors.HTTPError) as error:
            raise ConnectionClosedError(endpoint_url=request.url, error=error) from error


@lru_cache(maxsize=4)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    return key


class _Reply(NamedTuple):
    """What comes back, under the names that botocore has for it."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


def _exchanged(pool: HTTPConnectionPool, request: Any) -> _Reply:
    """Send a request and read the reply on a connection of a pool, which gets it back if it is good for another."""
    connection: Any = pool._get_conn()
    is_good = False
    try:
        timeout = pool.timeout.clone()
        timeout.start_connect()
        connection.timeout = Timeout.resolve_default_timeout(timeout.connect_timeout)
        pool._validate_conn(connection)
        if connection.is_closed:
            connection.connect()
        sock = connection.sock
        sock.settimeout(Timeout.resolve_default_timeout(timeout.read_timeout))
        is_sent = _is_sent(sock, request)
        with sock.makefile("rb") as reader:
            reply, is_whole = _reply(reader, request.method)
        is_good = is_sent and is_whole
        return reply
    finally:
        if not is_good:
            connection.close()
        pool._put_conn(connection)


def _is_sent(sock: socket.socket, request: Any) -> bool:
    """Send a request; tell whether the other side took it to its end. It may have answered before it hung up."""
    address = urlsplit(request.url)
    target = f"{address.path}?{address.query}" if address.query else address.path
    fields = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT, **request.headers}
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of several lines")
    body = request.body
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        for piece in (body,) if isinstance(body, (bytes, bytearray, memoryview)) else body:
            sock.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _reply(reader: Any, method: str) -> tuple[_Reply, bool]:
    """Read a reply; tell whether the connection is good for another request."""
    head, end, rest = reader.peek().partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200") and end and not rest:
        # By far the most replies are like this, and the standard library takes long for each.
        lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        headers = {name.lower(): value.strip() for name, _, value in lines}
        is_bare = method == "HEAD" or headers.get("content-length") == "0"
        if is_bare and not {"transfer-encoding", "connection"} & headers.keys():
            return _Reply(200, headers, b""), True
    opened: Any = SimpleNamespace(makefile=lambda mode: reader)
    reply = HTTPResponse(opened, method=method)
    reply.begin()
    content = reply.read(_LONGEST_REPLY)
    return _Reply(reply.status, dict(reply.headers), content), reply.isclosed() and not reply.will_close


class Body:
    """Chunks in the form ``aws-chunked``: each behind its length, a checksum of them all behind the last.

    :param chunks: together as many bytes as announced.
    :param size: how many these are.
    :param sha256: tells their hash once all were taken; without it, their CRC-32 is computed on the way.
    """

    def __init__(self, chunks: Iterator[memoryview], size: int, sha256: Callable[[], str] | None = None) -> None:
        self.size = size
        self.crc32 = 0
        self.algorithm = "sha256" if sha256 else "crc32"
        self._sha256 = sha256
        self.failure: BaseException | None = None
        self._chunks = chunks

    @property
    def framed_bytes(self) -> int:
        """Length of the whole with all that is put around the chunks, which go in frames of one length."""
        whole, rest = divmod(self.size, _FRAME_BYTES)
        frames = whole * _framed(_FRAME_BYTES) + (_framed(rest) if rest else 0)
        return frames + len(self._end(bytes(32 if self._sha256 else 4)))

    def __iter__(self) -> Iterator[bytes | memoryview]:
        try:
            room, remaining = 0, self.size
            for chunk in self._chunks:
                if len(chunk) > remaining:
                    raise IntegrityError(f"a body went on after the {self.size} bytes that were announced")
                if self._sha256 is None:
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
            yield self._end(bytes.fromhex(self._sha256()) if self._sha256 else self.crc32.to_bytes(4, "big"))
        except GeneratorExit:
            raise  # the connection broke, which is no fault of the body
        except BaseException as error:
            self.failure = error
            raise

    def _end(self, checksum: bytes) -> bytes:
        return b"0\r\n%s%s:%s\r\n\r\n" % (CHECKSUM.encode(), self.algorithm.encode(), base64.b64encode(checksum))


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
