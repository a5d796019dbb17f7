"""A media host that makes up its files: ``/<bytes>/<number>.mp3`` is a file of that many bytes, always the same ones.

Ranges, ``If-Match``, ETag and keep-alive are as real hosts have them. Bytes go from the page cache to the socket by
``sendfile``; with TLS, OpenSSL reads them from there.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import random
import re
import time
from typing import TYPE_CHECKING

from bench.wire import Connection, Request, add_options, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 32 * 1024 * 1024
HEADER = b"ID3\x03\0\0\0\0\0\0"
"""How a file begins, so that it is stored as it is."""

_TARGET = re.compile(r"/([0-9]+)/([0-9]+)\.mp3")
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")


def block() -> bytes:
    """Return what all files are made of."""
    return random.Random(1).randbytes(BLOCK)  # noqa: S311 - the same bytes each time, no secret


def pieces(number: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Say where in the block the bytes of a file are, as offset and count; those of the header have offset -1."""
    while start < end:
        if start < len(HEADER):
            count = min(len(HEADER), end) - start
            yield -1, count
        else:
            at = (start + 4099 * number) % BLOCK
            count = min(end - start, BLOCK - at)
            yield at, count
        start += count


def sha256(content: bytes, number: int, size: int) -> str:
    """Return the hash of a file, made from the block's ``content``."""
    digest = hashlib.sha256(HEADER[:size])
    view = memoryview(content)
    for at, count in pieces(number, min(size, len(HEADER)), size):
        digest.update(view[at : at + count])
    return digest.hexdigest()


class Source:
    """Answers requests."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("block")
        os.truncate(self._fd, BLOCK)
        with open(self._fd, "wb", closefd=False) as file:
            file.write(block())
        self._view = memoryview(mmap.mmap(self._fd, BLOCK, prot=mmap.PROT_READ))

    def handle(self, connection: Connection, request: Request) -> None:
        """Answer one request."""
        match = _TARGET.fullmatch(request.target.partition("?")[0])
        time.sleep(connection.link.delay)
        if match is None or request.method not in ("GET", "HEAD"):
            connection.reply(404)
            return
        size, number = int(match[1]), int(match[2])
        etag = f'"{size}-{number}"'
        if request.headers.get("if-match", etag) not in (etag, "*"):
            connection.reply(412)
            return
        status, start, end = 200, 0, size
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "audio/mpeg"}
        span = _RANGE.fullmatch(request.headers.get("range", ""))
        if span and request.headers.get("if-range", etag) == etag:
            start = int(span[1])
            end = min(size, int(span[2]) + 1) if span[2] else size
            if start >= end:
                connection.reply(416, {"Content-Range": f"bytes */{size}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
        connection.reply(status, {**headers, "Content-Length": str(end - start)})
        if request.method == "GET":
            self._send(connection, number, start, end)

    def _send(self, connection: Connection, number: int, start: int, end: int) -> None:
        pace = connection.link.pace()
        for at, count in pieces(number, start, end):
            if at < 0:
                connection.sock.sendall(HEADER[start : start + count])
            else:
                connection.send(self._fd, self._view, at, count, pace)


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    serve(Source().handle, parser.parse_args())


if __name__ == "__main__":
    main()
