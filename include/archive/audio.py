"""What the bytes are: recognised by looking at them, and a header for audio that has none."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import asdict, dataclass

from include.archive.errors import UnexpectedContentError

SNIFF_BYTES = 4096
"""Bytes of head that :func:`sniff` needs at most; room for two MP3 frames of any layer."""

_MAX_32 = 0xFFFFFFFF
"""The largest size that RIFF can state; RF64 puts it where the true size is in its ds64 chunk."""


@dataclass(frozen=True)
class MediaKind:
    """What a body is.

    :param media_type: its media type as it is stored.
    :param extension: the extension of its key, without the dot.
    :param is_pcm: True for samples without a header, which are stored as WAV.
    """

    media_type: str
    extension: str
    is_pcm: bool = False


EMPTY = MediaKind("application/x-empty", "empty")
OGG = MediaKind("audio/ogg", "ogg")
MP3 = MediaKind("audio/mpeg", "mp3")
WAV = MediaKind("audio/wav", "wav")
FLAC = MediaKind("audio/flac", "flac")
PCM = MediaKind("audio/wav", "wav", is_pcm=True)
UNKNOWN = MediaKind("application/octet-stream", "bin")

MEDIA_TYPE_OF_EXTENSION = {kind.extension: kind.media_type for kind in (EMPTY, OGG, MP3, WAV, FLAC, PCM, UNKNOWN)}


@dataclass(frozen=True)
class PcmFormat:
    """How headerless samples are laid out. The source does not say for files; this is what it says for live audio.

    :param rate: samples per second and channel, default 16,000.
    :param width: bytes per sample (little-endian, signed from two bytes up), default 2.
    :param channels: default 1.
    """

    rate: int = 16_000
    width: int = 2
    channels: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.rate <= 768_000 and 1 <= self.width <= 4 and 1 <= self.channels <= 64):
            raise ValueError(f"impossible PCM format: {self}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample in every channel."""
        return self.width * self.channels

    @property
    def bytes_per_second(self) -> int:
        """Bytes of one second."""
        return self.rate * self.frame_bytes

    def to_dict(self) -> dict[str, int]:
        """Return the fields as JSON can hold them."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.rate}/{self.width}/{self.channels}"

    @classmethod
    def parse(cls, text: str) -> PcmFormat:
        """Read what ``str()`` of a format gives.

        :raises ValueError: when the text is something else.
        """
        rate, width, channels = (int(number) for number in text.split("/"))
        return cls(rate=rate, width=width, channels=channels)


def sniff(head: bytes, *, source_format: str | None, content_type: str | None = None) -> MediaKind:
    """Decide what a body is from its first bytes.

    Neither the source's format field nor the content type can be relied on, so the bytes decide; the format field only
    tells headerless samples from unknown bytes.

    :param head: the first :data:`SNIFF_BYTES` of the body, fewer only when the body is shorter.
    :param source_format: the artifact's own format field.
    :param content_type: the content type that came with the body.
    :raises UnexpectedContentError: when the body is a text page: JSON, HTML or XML.
    """
    if not head:
        return EMPTY
    _refuse_text(head, content_type)
    raw = (source_format or "").strip().lower() == "raw"
    if head.startswith(b"OggS"):
        return OGG
    if head.startswith(b"fLaC"):
        return FLAC
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return WAV
    if raw:
        # Samples may begin like an MP3 by chance, one file in two thousand, so a single sync word proves nothing.
        return MP3 if _has_id3_header(head) or _has_two_mp3_frames(head) else PCM
    if head.startswith(b"ID3") or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return MP3
    return UNKNOWN


def size_implausible(data_bytes: int, duration: float | None, pcm: PcmFormat) -> bool:
    """Tell whether a body of samples is more than a second and 5 % away from the duration that the source states.

    :param data_bytes: bytes of samples.
    :param duration: seconds, as the source states them; None, or no finite number, never makes a size implausible.
    :param pcm: how the samples are laid out.
    """
    if duration is None or not math.isfinite(duration):
        return False
    return abs(data_bytes / pcm.bytes_per_second - duration) > max(1.0, 0.05 * duration)


def wav_header(pcm: PcmFormat, data_bytes: int) -> bytes:
    """Return the header that makes WAV of headerless samples: RIFF, or RF64 (EBU Tech 3306) from 4 GiB up.

    An odd number of bytes needs :func:`wav_padding` behind it.

    :param pcm: how the samples are laid out.
    :param data_bytes: bytes of samples that follow.
    """
    # fmt: tag 1 is linear PCM
    fmt = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, 1, pcm.channels, pcm.rate, pcm.bytes_per_second, pcm.frame_bytes, pcm.width * 8
    )
    body = data_bytes + len(wav_padding(data_bytes))
    riff_bytes = 4 + len(fmt) + 8 + body
    if riff_bytes <= _MAX_32:
        return struct.pack("<4sI4s", b"RIFF", riff_bytes, b"WAVE") + fmt + struct.pack("<4sI", b"data", data_bytes)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, riff_bytes + 36, data_bytes, data_bytes // pcm.frame_bytes, 0)
    return struct.pack("<4sI4s", b"RF64", _MAX_32, b"WAVE") + ds64 + fmt + struct.pack("<4sI", b"data", _MAX_32)


def wav_padding(data_bytes: int) -> bytes:
    """Return what RIFF wants behind an odd number of bytes."""
    return b"\0" * (data_bytes % 2)


_TEXT_TYPES = re.compile(r"text/|application/(json|xml|xhtml|problem)|.*\+(json|xml)\b", re.IGNORECASE)
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_HIGH_HALF = bytes(range(0x80, 0x100))
_CONTROL = frozenset(range(0x20)) - frozenset(b"\t\n\f\r") | {0x7F}


def _refuse_text(head: bytes, content_type: str | None) -> None:
    text = _as_text(head)
    if text is None:
        return
    if text.lstrip()[:1] in {"{", "[", "<"} or _TEXT_TYPES.match(content_type or ""):
        raise UnexpectedContentError("the body is a text page, not audio; most likely an error page of a host between")


def _as_text(head: bytes) -> str | None:
    """Return the head as text if it is printable throughout."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            text = head[len(mark) :].decode(encoding, "replace")
            break
    else:
        # Latin-1 stands for any encoding that contains ASCII; its high half must stay rare in a page.
        text = head.decode("latin-1")
        if len(head.translate(None, _HIGH_HALF)) < 0.7 * len(head):
            return None
    return None if any(ord(char) in _CONTROL for char in text) or "\ufffd" in text[:-1] else text


def _has_id3_header(head: bytes) -> bool:
    return (
        head.startswith(b"ID3")
        and len(head) >= 10
        and 0xFF not in head[3:5]
        and all(byte < 0x80 for byte in head[6:10])
    )


# Kilobits per second by (MPEG-1?, layer), then by bit-rate index.
_BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _has_two_mp3_frames(head: bytes) -> bool:
    first = _mp3_frame_bytes(head)
    return first is not None and _mp3_frame_bytes(head[first:]) is not None


def _mp3_frame_bytes(head: bytes) -> int | None:
    """Return the length of the frame that begins here, or None if no valid frame header does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer_bits = head[1] >> 3 & 3, head[1] >> 1 & 3
    rate_index, sample_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer_bits == 0 or rate_index in {0, 15} or sample_index == 3:
        return None
    layer = 4 - layer_bits
    bits_per_second = _BIT_RATES[version == 3, layer][rate_index - 1] * 1000
    sample_rate = _SAMPLE_RATES[version][sample_index]
    if layer == 1:
        return (12 * bits_per_second // sample_rate + padding) * 4
    samples = 72 if layer == 3 and version != 3 else 144
    return samples * bits_per_second // sample_rate + padding
