"""Connections that can't be held open for ever.

A socket's timeout bounds one read, so a sender of one byte per second never meets it, and one connection attempt, so a
host of many dead addresses outlasts it. And ``http.client`` takes headers that are cut off by a clean close for whole
ones. These connections close all three holes.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        self._holds_some = True

    def begin(self) -> None:
        super().begin()
        self._reader.headers_are_whole = True
        self._lift_deadline()

    def _lift_deadline(self) -> None:
        self._wire.lift_deadline()

    def receive_into(self, buffer: memoryview) -> int:
        """Read once, from the socket right into ``buffer``; 0 at the end of the body, or where it was cut.

        :raises io.UnsupportedOperation: the body comes in chunks, which can't be read this way.
        """
        if self.chunked:
            raise io.UnsupportedOperation("a chunked body")
        if self.isclosed():
            return 0
        room = buffer if self.length is None else buffer[: self.length]
        if not room:
            count = 0
        elif self._holds_some:
            held = len(self._reader.peek())
            count = self._reader.readinto1(room[:held])
            self._holds_some = count < held
        else:
            # TLS gives 16 KiB at a time, and each layer in between costs for each of them.
            count = self._sock.recv_into(room)
        if self.length is not None:
            self.length -= count
        if not count or self.length == 0:
            self._close_conn()  # type: ignore[attr-defined]
        return count


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
