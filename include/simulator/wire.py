"""Answers down to the byte: what is sent, how fast, and how the connection ends."""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import termios
from dataclasses import dataclass, field
from email.utils import format_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from include.simulator.audio import Body, Fixed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from include.simulator.journal import Entry

_TICK = 0.05


class HangUpError(Exception):
    """The connection was ended on purpose; nothing more can be sent on it."""


class Wire(Protocol):
    """The connection under an answer."""

    async def send(self, data: bytes | memoryview) -> None:
        """Send everything."""
        ...

    async def end(self, *, reset: bool) -> None:
        """Close cleanly, or reset the connection after what was sent has left."""
        ...


@dataclass
class Reply:
    """An answer.

    :param body: what is served; ``start`` and ``stop`` choose a range of it.
    :param length: the ``Content-Length`` to claim; None sends none and ends the body by closing.
    :param chunked: frame the body in chunks instead of stating its length.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=lambda: Fixed(b""))
    start: int = 0
    stop: int = 0
    length: int | None = 0
    chunked: bool = False

    @classmethod
    def of(cls, status: int, data: bytes | str | list[Any] | dict[str, Any], headers: dict[str, str]) -> Reply:
        """Make an answer from bytes, text or JSON."""
        if isinstance(data, (dict, list)):
            data = json.dumps(data)
            headers = {"Content-Type": "application/json", **headers}
        raw = data.encode() if isinstance(data, str) else data
        return cls(status, headers, Fixed(raw), 0, len(raw), len(raw))

    def content(self) -> bytes:
        """Give the chosen range of the body in one piece."""
        return b"".join(self.body.read(self.start, self.stop))

    def head(self, now: datetime, *, close: bool) -> bytes:
        """Write status line and headers."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        headers = {"Date": format_datetime(now.replace(microsecond=0), usegmt=True), **self.headers}
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif self.length is not None and self.status not in (204, 304):
            headers["Content-Length"] = str(self.length)
        headers["Connection"] = "close" if close else "keep-alive"
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


@dataclass(frozen=True)
class Delivery:
    """How an answer is sent; the default is as it should be.

    :param cut: end the connection after that many bytes of the body.
    :param reset: end it by a reset instead of a clean close.
    :param rate: bytes of the body per second.
    :param head_rate: bytes of the head per second.
    :param stall: stop sending after that many bytes of the body, until ``released`` or ``stall_seconds`` have passed.
    :param flip: offset in the whole body of a byte whose lowest bit is turned over.
    """

    cut: int | None = None
    reset: bool = True
    rate: float | None = None
    head_rate: float | None = None
    stall: int | None = None
    stall_seconds: float = 3600.0
    released: asyncio.Event | None = None
    flip: int | None = None


PLAIN = Delivery()


async def deliver(wire: Wire, reply: Reply, entry: Entry, *, now: datetime, close: bool, how: Delivery = PLAIN) -> None:
    """Send an answer.

    :param close: announce that the connection ends, and end it.
    :raises HangUpError: when the connection has ended.
    """
    close = close or (reply.length is None and not reply.chunked)
    entry.status = reply.status
    head = reply.head(now, close=close)
    if how.head_rate:
        for position in range(len(head)):
            await wire.send(head[position : position + 1])
            await asyncio.sleep(1 / how.head_rate)
    else:
        await wire.send(head)
    for number, piece in enumerate(_marked(reply, how)):
        if not number % 16:
            await asyncio.sleep(0)  # a reader that keeps up would otherwise never let another task run
        if how.stall is not None and entry.sent == how.stall:
            await _stall(how)
        if how.cut is not None and entry.sent >= how.cut:
            await wire.end(reset=how.reset)
            raise HangUpError
        await wire.send(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if reply.chunked else piece)
        entry.sent += len(piece)
        if how.rate:
            await asyncio.sleep(len(piece) / how.rate)
    if how.stall is not None and entry.sent == how.stall:
        await _stall(how)
    if how.cut is not None:
        await wire.end(reset=how.reset)
        raise HangUpError
    if reply.chunked:
        await wire.send(b"0\r\n\r\n")
    entry.complete = entry.sent == (reply.stop - reply.start if reply.length is None else reply.length)
    if close or not entry.complete:
        await wire.end(reset=False)
        raise HangUpError


async def _stall(how: Delivery) -> None:
    if how.released is None:
        await asyncio.sleep(how.stall_seconds)
        return
    try:
        await asyncio.wait_for(how.released.wait(), how.stall_seconds)
    except asyncio.TimeoutError:
        return


def _marked(reply: Reply, how: Delivery) -> Iterator[bytes | memoryview]:
    """Yield the body in pieces that end where something is to happen."""
    position = reply.start
    marks = sorted(reply.start + mark for mark in (how.cut, how.stall) if mark is not None)
    step = max(1, int(how.rate * _TICK)) if how.rate else None
    for piece in reply.body.read(reply.start, reply.stop):
        while len(piece):
            size = min([len(piece), *(mark - position for mark in marks if mark > position)])
            if step is not None:
                size = min(size, step)
            part = piece[:size]
            if how.flip is not None and position <= how.flip < position + size:
                turned = bytearray(part)
                turned[how.flip - position] ^= 1
                part = bytes(turned)
            yield part
            piece = piece[size:]
            position += size


class SocketWire:
    """A wire over a non-blocking socket, without a copy."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes | memoryview) -> None:
        """Send everything."""
        await self._loop.sock_sendall(self.connection, data)

    async def end(self, *, reset: bool) -> None:
        """Close cleanly, or reset the connection after what was sent has left."""
        if reset:
            await flush(self.connection)
            linger_zero(self.connection)
        else:
            self.connection.shutdown(socket.SHUT_WR)
        self.connection.close()


class TransportWire:
    """A wire over the transport of an HTTP server that someone else runs."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    async def send(self, data: bytes | memoryview) -> None:
        """Send everything, or notice that the other side has gone.

        :raises ConnectionResetError: when it has.
        """
        if self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)
        while self.transport.get_write_buffer_size():
            if self.transport.is_closing():
                raise ConnectionResetError
            await asyncio.sleep(0.001)

    async def end(self, *, reset: bool) -> None:
        """Close cleanly, or reset the connection after what was sent has left."""
        if not reset:
            self.transport.close()
            return
        connection = self.transport.get_extra_info("socket")
        await flush(connection)
        linger_zero(connection)
        self.transport.abort()


async def flush(connection: Any) -> None:
    """Wait, for two seconds at most, until the other side has everything: a reset throws away what has not left."""
    for _ in range(200):
        if connection.fileno() < 0:
            return
        queued = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        if not queued:
            return
        await asyncio.sleep(0.01)


def linger_zero(connection: Any) -> None:
    """Make the next close of a socket a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
