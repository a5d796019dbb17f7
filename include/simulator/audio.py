"""What the media host serves: bodies of any size, readable at any offset, without holding them in memory."""

from __future__ import annotations

import array
import functools
import hashlib
import json
import math
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

RATE = 16_000
BYTES_PER_SECOND = RATE * 2
BLOCK = 64 * 1024
WINDOW = 4 * 1024 * 1024
DEMO = Path(__file__).parent / "demo"


class Body(Protocol):
    """Bytes of a known length."""

    @property
    def length(self) -> int:
        """Give the number of bytes."""
        ...

    @property
    def media_type(self) -> str:
        """Give what an object store would call them."""
        ...

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes from ``start`` up to ``stop``, in pieces."""
        ...


class Fixed:
    """A body held in memory."""

    def __init__(self, data: bytes, media_type: str = "binary/octet-stream") -> None:
        self.data = data
        self.length = len(data)
        self.media_type = media_type

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Yield the whole range at once."""
        if stop > start:
            yield memoryview(self.data)[start:stop]


class Generated:
    """Bytes that depend on the seed and on their position, so that any shift or splice changes the hash.

    The body is cut into blocks of 64 KiB. Block ``k`` is a slice of one fixed random window, at a place that the seed
    and ``k`` choose; no two blocks of a body below 256 GiB are alike. The first bytes are ``head`` and a digest of the
    seed, so that short bodies of different seeds differ too.

    :param seed: any integer.
    :param length: in bytes.
    :param head: what the body starts with, for example the magic number of a container.
    """

    media_type = "binary/octet-stream"

    def __init__(self, seed: int, length: int, head: bytes = b"") -> None:
        digest = hashlib.sha256(str(seed).encode()).digest()
        self.length = length
        self._head = (head + digest[:16])[:BLOCK]
        self._origin = int.from_bytes(digest[16:20], "big")
        self._stride = int.from_bytes(digest[20:24], "big") | 1

    def _block(self, number: int) -> memoryview:
        # An odd stride visits every place of a power-of-two window once before it repeats.
        place = (self._origin + number * self._stride) % WINDOW
        block = _random_window()[place : place + BLOCK]
        return block if number else memoryview(self._head + bytes(block[len(self._head) :]))

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Yield slices of the window; nothing is copied after the first block."""
        stop = min(stop, self.length)
        while start < stop:
            number, within = divmod(start, BLOCK)
            piece = self._block(number)[within : within + stop - start]
            yield piece
            start += len(piece)


class Tone:
    """A sine wave as 16-bit PCM at 16 kHz.

    :param hertz: a whole number, so that one second repeats without a click.
    :param seconds: the length, which may be a fraction.
    """

    media_type = "binary/octet-stream"

    def __init__(self, hertz: int, seconds: float) -> None:
        self.length = round(seconds * RATE) * 2
        self._second = _tone_second(hertz)

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Yield the same second again and again."""
        stop = min(stop, self.length)
        second = memoryview(self._second)
        while start < stop:
            within = start % BYTES_PER_SECOND
            piece = second[within : within + stop - start]
            yield piece
            start += len(piece)


@functools.cache
def _random_window() -> memoryview:
    return memoryview(hashlib.shake_128(b"recall simulator").digest(WINDOW + BLOCK))


@functools.lru_cache(maxsize=64)
def _tone_second(hertz: int) -> bytes:
    samples = array.array("h", (round(12_000 * math.sin(2 * math.pi * hertz * n / RATE)) for n in range(RATE)))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


def _mu_law_tables() -> tuple[bytes, bytes]:
    low, high = bytearray(), bytearray()
    for code in range(256):
        inverted = ~code & 0xFF
        magnitude = (((inverted & 0x0F) << 3) + 0x84 << (inverted >> 4 & 0x07)) - 0x84
        sample = -magnitude if inverted & 0x80 else magnitude
        encoded = sample.to_bytes(2, "little", signed=True)
        low.append(encoded[0])
        high.append(encoded[1])
    return bytes(low), bytes(high)


def mu_law_to_pcm(data: bytes) -> bytes:
    """Decode 8-bit mu-law (G.711) to 16-bit little-endian PCM."""
    low, high = _mu_law_tables()
    pcm = bytearray(len(data) * 2)
    pcm[0::2] = data.translate(low)
    pcm[1::2] = data.translate(high)
    return bytes(pcm)


@functools.cache
def demo_meeting() -> dict[str, Any]:
    """Read the script of the demo meeting: who is there, who says what and when, and which turns make up a part."""
    meeting: dict[str, Any] = json.loads((DEMO / "meeting.json").read_text(encoding="utf-8"))
    return meeting


@functools.cache
def demo_clip(name: str) -> Fixed:
    """Load one part of the demo meeting as headerless PCM, with silence between its turns.

    :param name: a key of ``parts`` in ``demo/meeting.json``.
    :raises KeyError: when there is no such part.
    """
    meeting = demo_meeting()
    turns = meeting["parts"][name]
    start = meeting["turns"][turns[0]]["at"]
    pcm = bytearray()
    for turn in turns:
        place = round((meeting["turns"][turn]["at"] - start) * RATE) * 2
        pcm.extend(bytes(max(0, place - len(pcm))))
        pcm.extend(mu_law_to_pcm((DEMO / "turns" / f"{turn}.ulaw").read_bytes()))
    return Fixed(bytes(pcm))


@functools.cache
def demo_clip_encoded(name: str) -> Fixed:
    """Load one part of the demo meeting compressed: most are Ogg Vorbis, one is MP3.

    :param name: a key of ``parts`` in ``demo/meeting.json``.
    :raises KeyError: when there is no such part.
    """
    if name not in demo_meeting()["parts"]:
        raise KeyError(name)
    ogg = DEMO / "parts" / f"{name}.ogg"
    if ogg.exists():
        return Fixed(ogg.read_bytes(), "audio/ogg")
    return Fixed((DEMO / "parts" / f"{name}.mp3").read_bytes(), "audio/mpeg")


def digest_of(body: Body, algorithm: str) -> bytes:
    """Digest a whole body, in constant memory.

    :param algorithm: ``crc32``, or a name that ``hashlib`` knows.
    """
    pieces = body.read(0, body.length)
    if algorithm == "crc32":
        return functools.reduce(lambda value, piece: zlib.crc32(piece, value), pieces, 0).to_bytes(4, "big")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
