"""How a bucket is reached: where it is, who asks, and on which connections. Knows nothing of boto3.

A client of boto3 costs 20 MB and a tenth of a second of processor time in each process, nearly all of it for the model
of a service of which the archive needs a dozen operations.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
import struct
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from http.client import HTTPException, HTTPResponse
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import certifi
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3 import exceptions as urllib3_errors
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context

from include.archive.stores.base import READ_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mypy_boto3_s3 import S3Client

USER_AGENT = "recall-audio-archive"

SECONDS = 60.0
"""How long the other side may take to be reached, or to say anything, as with boto3."""

LONGEST_REPLY = 8 * 1024 * 1024
"""More than S3 needs to list a thousand of the longest keys."""

_PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_OF_ANOTHER_KIND = re.compile(r"^arn:|--(x|xa|op)-s3$")
_SMALL_BYTES = 1024
_SLICE_SECONDS = 0.5
"""How long a request waits for the other side before it is asked whether it still shall."""
_SLICE = struct.pack("@ll", 0, int(_SLICE_SECONDS * 1_000_000))
"""The same, as the kernel takes it."""
_MORE = getattr(socket, "MSG_MORE", 0)
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_IP = re.compile(r"[0-9.]+|.*:.*")
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,61}[a-z0-9]")
_SUFFIXES = (
    (re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-[0-9]+"), "amazonaws.com"),
    (re.compile(r"us-gov-[a-z]+-[0-9]+"), "amazonaws.com"),
    (re.compile(r"cn-[a-z]+-[0-9]+"), "amazonaws.com.cn"),
)


class RefusedError(Exception):
    """The store answered, and not with success.

    :param status: of HTTP.
    :param code: the store's own word, if it had one.
    """

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class UnansweredError(Exception):
    """There is no answer.

    :param reason: the name that botocore has for the kind of fault.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Credentials(NamedTuple):
    """What requests are signed with."""

    access_key: str
    secret_key: str
    token: str | None = None


@dataclass
class Request:
    """A signed request, under the names that botocore has for all this.

    :param operation: S3's name for it.
    :param body: bytes, or an iterable of them.
    :param stream_output: whether the reply's body is wanted piece by piece.
    """

    operation: str
    method: str
    url: str
    headers: dict[str, str]
    body: Any
    stream_output: bool = False


class Reply(NamedTuple):
    """What comes back, under the names that botocore has for it.

    ``chunks`` instead of ``content`` where the body is wanted piece by piece.
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    chunks: Iterator[bytes] | None = None


class Access(Protocol):
    """One bucket as it is reached."""

    @property
    def is_plain(self) -> bool:
        """Whether requests to the bucket are signed in the plain way, so that nothing but this is needed for them."""
        ...

    @property
    def address(self) -> str:
        """The bucket's URL, without a slash at its end."""
        ...

    @property
    def region(self) -> str:
        """The region that signatures name."""
        ...

    def credentials(self) -> Any:
        """Return what to sign with, fresh if it was to expire, as :class:`Credentials` or botocore have it; or None.

        :raises UnansweredError: when it can't be fetched.
        """
        ...

    def transmit(self, request: Request) -> Reply:
        """Send a request and return the reply, whatever it is.

        :raises UnansweredError: when there is none.
        """
        ...

    def client(self) -> S3Client:
        """Return a client of boto3, for what can be reached in no other way."""
        ...


@dataclass(frozen=True)
class Direct:
    """A bucket that is reached without boto3.

    :param address: see :class:`Access`, from :func:`address_of`.
    :param region: the same.
    :param keys: returns what to sign with, or None; called for each request.
    :param make_client: makes a client of boto3 when it turns out that one is needed.
    :param verify: whom to trust about the other side's certificate: True is certifi's list, a text the path of another
        one, False anybody.
    :param connect_timeout: seconds.
    :param read_timeout: seconds without a byte.
    :param connections: that are kept open at most.
    """

    address: str
    region: str
    keys: Callable[[], Any]
    make_client: Callable[[], S3Client]
    verify: bool | str = True
    connect_timeout: float = SECONDS
    read_timeout: float = SECONDS
    connections: int = 40

    is_plain = True

    def credentials(self) -> Any:
        """See :meth:`Access.credentials`."""
        return self.keys()

    def transmit(self, request: Request) -> Reply:
        """See :meth:`Access.transmit`."""
        try:
            pool = self._pool
        except OSError as error:
            raise UnansweredError("SSLError") from error  # the list of certificates can't be read
        return exchanged(pool, request)

    def client(self) -> S3Client:
        """See :meth:`Access.client`."""
        return self.make_client()

    @cached_property
    def _pool(self) -> HTTPConnectionPool:
        place = urlsplit(self.address)
        options: dict[str, Any] = {
            "maxsize": self.connections,
            "timeout": Timeout(connect=self.connect_timeout, read=self.read_timeout),
            "socket_options": [
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            ],
        }
        if place.scheme == "http":
            return HTTPConnectionPool(str(place.hostname), place.port, **options)
        return HTTPSConnectionPool(str(place.hostname), place.port, ssl_context=trusting(self.verify), **options)


@cache
def trusting(verify: bool | str) -> ssl.SSLContext:
    """Return what checks certificates, see :class:`Direct`; reading a list of them takes longer than a request."""
    context = create_urllib3_context()
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(certifi.where() if verify is True else verify)
    return context


def is_plain_bucket(bucket: str) -> bool:
    """Tell whether a bucket is none of those whose requests are signed in ways of their own."""
    return _OF_ANOTHER_KIND.search(bucket) is None


def address_of(bucket: str, region: str, endpoint_url: str | None = None, style: str = "auto") -> str | None:
    """Return the URL at which boto3 would reach a bucket; None where only boto3 knows.

    :param endpoint_url: of another store than AWS.
    :param style: ``path``, ``virtual`` or ``auto``, as boto3 takes it.
    """
    if not _PLAIN_BUCKET.fullmatch(bucket) or not is_plain_bucket(bucket) or style not in {"path", "virtual", "auto"}:
        return None
    if _IP.fullmatch(bucket) or ".." in bucket or ".-" in bucket or "-." in bucket:
        return None
    if not _REGION.fullmatch(region) or region.endswith("-global") or "fips" in region:
        return None
    if endpoint_url is not None:
        return _address_below(endpoint_url, bucket, style)
    suffix = next((suffix for regions, suffix in _SUFFIXES if regions.fullmatch(region)), None)
    if suffix is None:
        return None
    host = f"s3.{suffix}" if region == "us-east-1" else f"s3.{region}.{suffix}"
    # No certificate is good for a name with more dots.
    return f"https://{host}/{bucket}" if style == "path" or "." in bucket else f"https://{bucket}.{host}"


def _address_below(endpoint_url: str, bucket: str, style: str) -> str | None:
    try:
        place = urlsplit(endpoint_url)
        host, _ = place.hostname or "", place.port
    except ValueError:
        return None
    if place.scheme not in {"http", "https"} or not host or "@" in place.netloc or "amazonaws" in host:
        return None
    if place.query or place.fragment or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", place.path):
        return None
    path = place.path.rstrip("/")
    if style != "virtual":
        return f"{place.scheme}://{place.netloc}{path}/{bucket}"
    return None if "." in bucket or _IP.fullmatch(host) else f"{place.scheme}://{bucket}.{place.netloc}{path}"


def exchanged(pool: HTTPConnectionPool, request: Any) -> Reply:
    """Send a request and read the reply on a connection of a pool, which gets it back if it is good for another.

    urllib3's own way takes ten times as long for this as the request itself does.

    :param request: a :class:`Request`, or one of botocore's.
    :raises UnansweredError: when there is no reply.
    """
    with named_faults():
        connection: Any = pool._get_conn()
        reader: Any = None
        is_good = is_lent = False
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
            if _QUICK_ACK is not None and request.method in {"GET", "POST"}:
                # Ceph's gateway sends the headers of a reply, and the rest when these have been acknowledged.
                sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
            reader = _begun_reply(sock, getattr(request.body, "is_over", None))
            reply, rest, is_whole = _reply(reader, request)
            if rest is not None:
                is_lent = True
                return reply._replace(chunks=_chunks(pool, connection, rest))
            if not is_sent and reply.status_code < 300:
                raise ConnectionResetError("answered before all was sent")  # whatever it thinks that it has
            is_good = is_sent and is_whole
            return reply
        finally:
            if not is_lent:
                if reader is not None:
                    reader.close()
                if not is_good:
                    connection.close()
                pool._put_conn(connection)


def _chunks(pool: HTTPConnectionPool, connection: Any, rest: HTTPResponse) -> Iterator[bytes]:
    """Yield what is left of a reply, then give the connection back."""
    is_good = False
    try:
        with named_faults():
            while chunk := rest.read(READ_CHUNK):
                yield chunk
            if rest.length:
                raise UnansweredError("IncompleteReadError")
            is_good = rest.isclosed() and not rest.will_close
    finally:
        rest.close()
        if not is_good:
            connection.close()
        pool._put_conn(connection)


@contextmanager
def named_faults() -> Iterator[None]:
    """Turn the faults of connections into :class:`UnansweredError`."""
    try:
        yield
    except urllib3_errors.NewConnectionError as error:
        raise UnansweredError("EndpointConnectionError") from error
    except (TimeoutError, urllib3_errors.TimeoutError) as error:
        raise UnansweredError("ReadTimeoutError") from error
    except (ssl.SSLError, urllib3_errors.SSLError) as error:
        raise UnansweredError("SSLError") from error
    except (OSError, HTTPException, urllib3_errors.HTTPError) as error:
        raise UnansweredError("ConnectionClosedError") from error


def _is_sent(sock: socket.socket, request: Any) -> bool:
    """Send a request; tell whether the other side took it to its end. It may have answered before it hung up."""
    address = urlsplit(request.url)
    target = f"{address.path}?{address.query}" if address.query else address.path
    fields = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT, **request.headers}
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of several lines")
    body = request.body
    is_plain, timeout = not isinstance(sock, ssl.SSLSocket), sock.gettimeout()
    is_over: Callable[[], bool] = getattr(body, "is_over", lambda: False)
    try:
        if is_plain:
            # The kernel waits until much of a piece is sent. A timeout of Python's own means to be called, and to wait
            # for the interpreter, for each bit that the other side takes.
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SLICE)
        small = "\r\n".join([*lines, "", ""]).encode("latin-1")
        for piece in (body,) if isinstance(body, (bytes, bytearray, memoryview)) else body:
            if len(piece) < _SMALL_BYTES:
                small += piece
            elif is_plain:
                _send(sock, small, timeout, is_over, _MORE)
                _send(sock, piece, timeout, is_over)
                small = b""
            else:
                sock.sendall(small)
                sock.sendall(piece)
                small = b""
        if is_plain:
            _send(sock, small, timeout, is_over)
        else:
            sock.sendall(small)
    except (BrokenPipeError, ConnectionResetError):
        return False
    finally:
        if is_plain:
            sock.settimeout(timeout)
    return True


def _send(sock: socket.socket, data: Any, timeout: float | None, is_over: Callable[[], bool], flags: int = 0) -> None:
    """Send all of it within the timeout, by a socket that lets a call return after a while."""
    end = None if timeout is None else time.monotonic() + timeout
    left = memoryview(data)
    while left:
        with suppress(BlockingIOError):
            left = left[sock.send(left, flags) :]
        if left and (is_over() or (end is not None and time.monotonic() > end)):
            raise TimeoutError("timed out")


def _begun_reply(sock: socket.socket, is_over: Callable[[], bool] | None) -> Any:
    """Return what a reply is read from, when it has begun; without ``is_over``, waiting is left to reading it."""
    if is_over is None:
        return sock.makefile("rb")
    timeout = sock.gettimeout()
    end = math.inf if timeout is None else time.monotonic() + timeout
    sock.settimeout(_SLICE_SECONDS)
    try:
        while True:
            reader = sock.makefile("rb")
            try:
                reader.peek()
                return reader
            except TimeoutError:
                reader.close()  # one that has timed out can't be read again
                if is_over() or time.monotonic() > end:
                    raise
            except BaseException:
                reader.close()
                raise
    finally:
        sock.settimeout(timeout)


def _reply(reader: Any, request: Any) -> tuple[Reply, HTTPResponse | None, bool]:
    """Read a reply, without its body if that is wanted piece by piece.

    :return: with it what the body is still to be read from, and whether the connection is good for another request.
    """
    head, end, rest = reader.peek().partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200") and end and not rest:
        # By far the most replies are like this, and the standard library takes long for each.
        lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        headers = {name.lower(): value.strip() for name, _, value in lines}
        is_bare = request.method == "HEAD" or headers.get("content-length") == "0"
        if is_bare and not {"transfer-encoding", "connection"} & headers.keys():
            return Reply(200, headers, b""), None, True
    opened: Any = SimpleNamespace(makefile=lambda mode: reader)
    reply = HTTPResponse(opened, method=request.method)
    reply.begin()
    found = Reply(reply.status, dict(reply.headers), b"")
    if request.stream_output and reply.status in {200, 206}:
        return found, reply, False
    content = reply.read(LONGEST_REPLY)
    return found._replace(content=content), None, reply.isclosed() and not reply.will_close
