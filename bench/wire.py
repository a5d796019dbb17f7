"""HTTP/1.1 for servers that must cost next to nothing: one thread a connection, bodies that never reach Python."""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    Keep = Callable[[bytes | memoryview], object]
    Pace = Callable[[int], None]

LOOPBACK = "127.0.0.1"
STEP = 1024 * 1024
"""Bytes per system call."""

PACED_STEP = 128 * 1024
"""Bytes per system call where a rate is held, and of a socket's buffer, so that the other side can't run ahead."""


@dataclass(frozen=True)
class Link:
    """How good a connection is.

    :param rate: bytes per second; 0 for no limit.
    :param delay: seconds from a request to its answer.
    """

    rate: float = 0
    delay: float = 0

    def pace(self) -> Pace:
        """Return what is to be called with the number of bytes moved: it waits until that many were allowed."""
        if not self.rate:
            return lambda count: None
        due = time.monotonic()

        def wait(count: int) -> None:
            nonlocal due
            due += count / self.rate
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)

        return wait


class Request(NamedTuple):
    """A request's line and headers, whose names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


class Connection:
    """The server's side of one connection."""

    def __init__(self, sock: socket.socket, link: Link) -> None:
        self.sock = sock
        self.link = link
        self._is_plain = not isinstance(sock, ssl.SSLSocket)
        self._step = PACED_STEP if link.rate else STEP
        self._buffer = memoryview(bytearray(self._step))
        self._pending = b""

    def request(self) -> Request | None:
        """Read the next request up to its body; None when there is none."""
        while b"\r\n\r\n" not in self._pending:
            data = self.sock.recv(65536)
            if not data:
                return None
            self._pending += data
        head, self._pending = self._pending.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        return Request(method, target, {name.lower(): value.strip() for name, _, value in pairs})

    def line(self) -> bytes:
        """Read one line of a chunked body."""
        while b"\r\n" not in self._pending:
            data = self.sock.recv(256)
            if not data:
                raise ConnectionError("the body was cut")
            self._pending += data
        line, self._pending = self._pending.split(b"\r\n", 1)
        return line

    def take(self, count: int, keep: Keep | None, pace: Pace) -> None:
        """Read ``count`` bytes of a body; where nobody keeps them, the kernel need not even copy them."""
        first, self._pending = self._pending[:count], self._pending[count:]
        if keep and first:
            keep(first)
        pace(len(first))
        count -= len(first)
        flags = socket.MSG_TRUNC if self._is_plain and not keep else 0
        while count:
            came = self.sock.recv_into(self._buffer, min(count, self._step), flags)
            if not came:
                raise ConnectionError("the body was cut")
            if keep:
                keep(self._buffer[:came])
            count -= came
            pace(came)

    def reply(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Send an answer with a short body; a Content-Length in ``headers`` takes the place of the body's own."""
        fields = {"Content-Length": str(len(body)), **(headers or {})}
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self.sock.sendall("\r\n".join(lines).encode() + body)

    def send(self, fd: int, view: memoryview, start: int, count: int, pace: Pace) -> None:
        """Send ``count`` bytes of a file that is also mapped as ``view``."""
        while count:
            step = min(count, self._step)
            if self._is_plain:
                step = os.sendfile(self.sock.fileno(), fd, start, step)
            else:
                self.sock.sendall(view[start : start + step])
            start += step
            count -= step
            pace(step)


class Unchunked:
    """A body without its transfer encoding; it is read like a connection, to its last line."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = 0

    def take(self, count: int, keep: Keep | None, pace: Pace) -> None:
        """See :meth:`Connection.take`."""
        while count:
            self._open()
            step = min(count, self._left)
            self._connection.take(step, keep, pace)
            count -= step
            self._left -= step
            if not self._left:
                self._connection.line()

    def line(self) -> bytes:
        """See :meth:`Connection.line`."""
        line = bytearray()
        while not line.endswith(b"\r\n"):
            self.take(1, line.extend, lambda count: None)
        return bytes(line[:-2])

    def end(self) -> None:
        """Read the empty chunk behind the body."""
        while self._connection.line():
            pass

    def _open(self) -> None:
        if not self._left:
            self._left = int(self._connection.line(), 16)
            if not self._left:
                raise ConnectionError("the body was cut")


def serve(handle: Callable[[Connection, Request], None], options: argparse.Namespace) -> None:
    """Listen, print the port as JSON, and answer until standard input ends."""
    link = Link(options.rate, options.delay)
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    listener = socket.create_server((LOOPBACK, 0), backlog=512)
    if link.rate:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            listener.setsockopt(socket.SOL_SOCKET, option, PACED_STEP)

    def converse(sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(sock, server_side=True) if context else sock as peer:
                connection = Connection(peer, link)
                while (request := connection.request()) is not None:
                    handle(connection, request)
        except OSError:
            pass  # the client's own report says what it makes of that

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=converse, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.buffer.read()  # ends when the owner does


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what both servers understand."""
    parser.add_argument("--certificate", help="PEM file with certificate and key; without it, plain HTTP")
    parser.add_argument("--rate", type=float, default=0, help="bytes per second and connection; 0: no limit")
    parser.add_argument("--delay", type=float, default=0, help="seconds before each answer")
