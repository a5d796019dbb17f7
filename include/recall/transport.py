"""Connections that can't be held open for ever.

A socket's timeout bounds one read, so a sender of one byte per second never meets it, and one connection attempt, so a
host of many dead addresses outlasts it. And ``http.client`` takes headers that are cut off by a clean close for whole
ones. These connections close all three holes.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import urllib3
from urllib3._collections import HTTPHeaderDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from urllib3.util import Url

_USUAL_HEAD = re.compile(r"HTTP/1\.1 (20[06])[^\r\n]*((?:\r\n[!#-9;-~]+:[^\r\n]*)+)")
_MOST_DIGITS = 18
_COLLECTING = struct.pack("@ll", 0, 200_000)
"""How long, as the kernel takes it, a read waits for more when some has come."""
_FIELD = re.compile(r"\r\n([^:]+):[ \t]*([^\r\n]*?)[ \t]*(?=\r|$)")


class _Wire(io.RawIOBase):
    """What arrives on a socket, with one deadline over all reads until it is lifted."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._timeout = sock.gettimeout()
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout

    def lift_deadline(self) -> None:
        self._deadline = None
        self._sock.settimeout(self._timeout)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reader(io.BufferedReader):
    """Reads a reply; until its headers are whole, a line that has no end is an error."""

    headers_are_whole = False

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not self.headers_are_whole and not line.endswith(b"\n") and (size is None or size < 0 or len(line) < size):
            raise ConnectionResetError("the connection was closed inside the headers")
        return line


class _Response(http.client.HTTPResponse):
    """A reply whose headers must all arrive within the read timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._wire = _Wire(self.fp.detach(), sock)
        self._reader = _Reader(self._wire)
        self.fp = self._reader
        self._sock = sock
        self._patience: float | None = None
        self._holds_some = True

    def begin(self) -> None:
        super().begin()
        self._reader.headers_are_whole = True
        self._lift_deadline()

    def begin_quickly(self) -> None:
        """Do as :meth:`begin` does, in a tenth of its time where the reply is as most are."""
        head, end, _ = self._reader.peek().partition(b"\r\n\r\n")
        match = _USUAL_HEAD.fullmatch(head.decode("latin-1")) if end else None
        fields = HTTPHeaderDict(_FIELD.findall(match[2])) if match else HTTPHeaderDict()
        length = fields.get("Content-Length", "")
        is_usual = length.isdecimal() and len(length) <= _MOST_DIGITS
        if match is None or not is_usual or "Transfer-Encoding" in fields or "Connection" in fields:
            self.begin()
            if len(set(self.headers.get_all("Content-Length") or ())) > 1:
                raise http.client.HTTPException("several lengths of one body")
            return
        self._reader.read(len(head) + len(end))
        self.version, self.status, self.headers = 11, int(match[1]), cast("Any", fields)
        self.length, self.chunked, self.will_close = int(length), False, False
        self._reader.headers_are_whole = True
        self._lift_deadline()
        if not self.length:
            self._close_conn()  # type: ignore[attr-defined]

    def _lift_deadline(self) -> None:
        self._wire.lift_deadline()

    def receive_into(self, buffer: memoryview) -> int:
        """Read once, where possible from the socket right into ``buffer``; 0 at the body's end, or where it was cut."""
        if self.isclosed():
            return 0
        if self.chunked:
            data = self.read1(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        room = buffer if self.length is None else buffer[: self.length]
        if not room:
            count = 0
        elif self._holds_some:
            held = len(self._reader.peek())
            count = self._reader.readinto1(room[:held])
            self._holds_some = count < held
        else:
            count = self._filled(room)
        if self.length is not None:
            self.length -= count
        if not count or self.length == 0:
            self._close_conn()  # type: ignore[attr-defined]
        return count

    def _filled(self, room: memoryview) -> int:
        if isinstance(self._sock, ssl.SSLSocket):
            # It gives 16 KiB at a time, and each layer in between costs for each of them.
            return self._sock.recv_into(room)
        if self._patience is None:
            # The kernel waits until there is much to be had. A timeout of Python's own means to be called, and to wait
            # for the interpreter, for each bit that comes.
            self._patience = self._sock.gettimeout()
            self._sock.settimeout(None)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _COLLECTING)
        end = None if self._patience is None else time.monotonic() + self._patience
        while True:
            try:
                return self._sock.recv_into(room, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                if end is not None and time.monotonic() > end:
                    raise TimeoutError("timed out") from None


class Reply:
    """A reply that has begun. urllib3's own takes longer for each than a small range of a body.

    :param pool: where the connection came from, and goes back to when the body was read to its end.
    :param connection: the connection.
    :param response: what was begun on it.
    """

    def __init__(self, pool: urllib3.HTTPConnectionPool, connection: Any, response: _Response) -> None:
        self.status = response.status
        self.headers = cast("Mapping[str, str]", response.headers)
        self._lock = threading.RLock()  # a signal handler may interrupt whatever holds it
        self._pool = pool
        self._connection = connection
        self._response = response

    def receive_into(self, buffer: memoryview) -> int:
        """Read some of the body; 0 at its end, or where it was cut."""
        count = self._response.receive_into(buffer)
        if not count or self._response.isclosed():
            self._let_go(is_good=self._response.isclosed() and not self._response.will_close)
        return count

    def interrupt(self) -> None:
        """Make a read that waits in another thread fail at once. Never raises."""
        with self._lock, suppress(AttributeError, OSError):
            # Not by a method of the TLS socket, which then would read on without TLS.
            socket.socket.shutdown(self._connection.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection; unless the body was read to its end, it is of no use to others."""
        self._let_go(is_good=False)
        self._response.close()

    def _let_go(self, *, is_good: bool) -> None:
        with self._lock:  # nobody interrupts what is another's by then
            connection, self._connection = self._connection, None
        if connection is not None:
            if not is_good:
                connection.close()
            self._pool._put_conn(connection)


def get(pool: urllib3.HTTPConnectionPool, url: Url, headers: Mapping[str, str], timeout: urllib3.Timeout) -> Reply:
    """Ask for something on one of a pool's connections, and wait for the reply's headers.

    :param pool: that of the URL's host, with connections of this module.
    :raises HTTPError: or HTTPException, or OSError: there is no such reply.
    """
    port = "" if url.port in (None, {"http": 80, "https": 443}.get(url.scheme or "")) else f":{url.port}"
    lines = [f"GET {url.request_uri} HTTP/1.1", f"Host: {url.host}{port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of several lines")
    connection: Any = pool._get_conn()
    try:
        timeout = timeout.clone()
        timeout.start_connect()
        connection.timeout = timeout.connect_timeout
        pool._validate_conn(connection)
        if connection.is_closed:
            connection.connect()
        connection.sock.settimeout(timeout.read_timeout)
        connection.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        response: _Response = connection.response_class(connection.sock, method="GET")
        response.begin_quickly()
    except BaseException:
        connection.close()
        pool._put_conn(connection)
        raise
    return Reply(pool, connection, response)


class _WholeResponse(_Response):
    """A reply that must arrive within the read timeout, body and all."""

    def _lift_deadline(self) -> None:
        pass


class _Dialling(HTTPConnection):
    """Resolves the host once, and gives all its addresses together the time of one."""

    def vet(self, host: str, port: int, addresses: list[str]) -> None:
        """Raise if these addresses are not to be connected to."""

    def _new_conn(self) -> socket.socket:
        host, port = self.host.strip("[]").lower(), self.port
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise NameResolutionError(host, self, socket.gaierror(type(error).__name__)) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        self.vet(host, port, addresses)
        end = time.monotonic() + (self.timeout or 0.0)
        failure: OSError = OSError("no address")
        for number, address in enumerate(addresses):
            share = max(0.01, (end - time.monotonic()) / (len(addresses) - number))
            try:
                return create_connection((address, port), share, socket_options=self.socket_options)
            except OSError as error:
                failure = error
        raise NewConnectionError(self, type(failure).__name__) from failure


class PlainConnection(_Dialling):
    """HTTP; the read timeout bounds all headers, then each read of the body."""

    response_class = _Response


class SecureConnection(_Dialling, HTTPSConnection):
    """HTTPS; the read timeout bounds all headers, then each read of the body."""

    response_class = _Response


class PlainWholeConnection(_Dialling):
    """HTTP; the read timeout bounds the whole reply."""

    response_class = _WholeResponse


class SecureWholeConnection(_Dialling, HTTPSConnection):
    """HTTPS; the read timeout bounds the whole reply."""

    response_class = _WholeResponse


def use_connections(manager: urllib3.PoolManager, plain: type[HTTPConnection], secure: type[HTTPSConnection]) -> None:
    """Make a pool manager open connections of these classes."""
    manager.pool_classes_by_scheme = {
        "http": type("PlainPool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("SecurePool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": secure}),
    }


class Address(NamedTuple):
    """Where a URL leads, without its query. The host is in lower case, without brackets or final dot."""

    scheme: str
    host: str
    port: int
    path: str


def parsed(url: str) -> Address | None:
    """Read a URL as the connection itself will; ``None`` if it is no http(s) URL, or names a user."""
    try:
        parts = urllib3.util.parse_url(url)
    except ValueError:
        return None
    host = (parts.host or "").strip("[]").rstrip(".").lower()
    if parts.scheme not in ("http", "https") or not host or parts.auth is not None:
        return None
    return Address(parts.scheme, host, parts.port or {"http": 80, "https": 443}[parts.scheme], parts.path or "/")


def linked(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that it wraps, as cause, context, reason or argument."""
    stack, seen = [error], set()
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        stack.extend(one for one in inner if isinstance(one, BaseException))


def timed_out(error: BaseException) -> bool:
    """Tell whether a connection failed for want of time."""
    # Not urllib3's own TimeoutError, from which a refused connection descends too.
    return any(isinstance(one, (TimeoutError, urllib3.exceptions.ReadTimeoutError)) for one in linked(error))


def reason_of(error: BaseException) -> tuple[str, bool]:
    """Say in a few words why a connection failed, and whether trying again is useless (a certificate).

    The words never hold the URL, which the libraries' own texts do.
    """
    reason = "it didn't answer in time" if timed_out(error) else "the connection was cut"
    for one in linked(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"its certificate can't be trusted: {one.verify_message}", True
        if isinstance(one, (socket.gaierror, NameResolutionError)):
            reason = "its name can't be resolved"
        elif isinstance(one, ConnectionRefusedError):
            reason = "it refused the connection"
        elif isinstance(one, ssl.SSLError):
            reason = f"TLS failed ({one.reason or 'no reason given'})"
    return reason, False
