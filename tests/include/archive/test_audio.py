from __future__ import annotations

import io
import json
import struct
import wave

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.archive import audio
from include.archive.audio import PcmFormat, size_implausible, sniff, wav_header, wav_padding
from include.archive.errors import UnexpectedContentError

MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz: 417 bytes


@pytest.mark.parametrize(
    ("head", "source_format", "extension"),
    [
        (b"OggS\0", "ogg", "ogg"),
        (b"OggS\0", "raw", "ogg"),
        (b"fLaC\0", None, "flac"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "raw", "wav"),
        (b"RF64\xff\xff\xff\xffWAVEds64", "raw", "wav"),
        (b"RIFF\x24\0\0\0AVI fmt ", "mystery", "bin"),
        (b"ID3\x04\0\0\0\0\0\x7f", "ogg", "mp3"),
        (b"ID3\x04\0\0\0\0\0\x7f", "raw", "mp3"),
        (b"\xff\xfb\x90\0", "mp3", "mp3"),
        (MP3_FRAME * 2, "raw", "mp3"),
        (b"\0\0\1\0", "mystery", "bin"),
        (b"\0\0\1\0", None, "bin"),
        (b"", "raw", "empty"),
        (b"", None, "empty"),
    ],
)
def test_kinds(head: bytes, source_format: str | None, extension: str) -> None:
    kind = sniff(head, source_format=source_format)
    assert (kind.extension, kind.is_pcm) == (extension, False)
    assert audio.MEDIA_TYPE_OF_EXTENSION[kind.extension] == kind.media_type


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xfb\x90\x00" * 100,  # a sync word, and not a second one where the frame would end
        MP3_FRAME,
        b"\xff\xe0\x00\x00",
        b"ID3\xff\xff\0\0\0\0\0",
        b"ID3",
        b"\x00",
        b"\xff",
        bytes(4096),
        b"{\x00[\x00<\x00",
        b"<\xff\xfe\x01" * 100,
    ],
)
@pytest.mark.parametrize("source_format", ["raw", "RAW", " raw "])
def test_samples_that_look_like_something_else(head: bytes, source_format: str) -> None:
    assert sniff(head, source_format=source_format) is audio.PCM


@pytest.mark.parametrize(
    "page",
    [
        b"<!doctype html><title>Sign in</title>",
        b"\n  <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        b'\xef\xbb\xbf{"detail": "not found"}',
        "<html>Anmeldung für Gäste</html>".encode("latin-1"),
        b"[]",
        "\ufeff<html></html>".encode("utf-16-le"),
        json.dumps({"a": "x" * 5000}).encode()[: audio.SNIFF_BYTES],
    ],
)
@pytest.mark.parametrize("source_format", ["raw", "ogg", None])
def test_text_pages_are_refused(page: bytes, source_format: str | None) -> None:
    with pytest.raises(UnexpectedContentError) as caught:
        sniff(page, source_format=source_format)
    assert not caught.value.permanent


def test_the_content_type_only_adds_to_what_the_bytes_say() -> None:
    with pytest.raises(UnexpectedContentError):
        sniff(b"Please sign in.", source_format="raw", content_type="text/html; charset=utf-8")
    assert sniff(b"OggS\0", source_format="ogg", content_type="text/html") is audio.OGG
    assert sniff(bytes(range(256)), source_format="raw", content_type="text/plain") is audio.PCM


@settings(max_examples=200)
@given(
    st.binary(max_size=600), st.sampled_from(["raw", "ogg", None]), st.sampled_from([None, "text/html", "audio/ogg"])
)
def test_any_head_is_decided(head: bytes, source_format: str | None, content_type: str | None) -> None:
    try:
        kind = sniff(head, source_format=source_format, content_type=content_type)
    except UnexpectedContentError:
        return
    assert kind.is_pcm <= (source_format == "raw")
    assert (kind is audio.EMPTY) == (head == b"")


@settings(max_examples=50)
@given(
    st.builds(PcmFormat, rate=st.integers(1, 192_000), width=st.integers(1, 4), channels=st.integers(1, 8)),
    st.binary(max_size=2000),
)
def test_wav_is_readable_and_keeps_the_samples(pcm: PcmFormat, data: bytes) -> None:
    blob = wav_header(pcm, len(data)) + data + wav_padding(len(data))
    assert len(blob) == 44 + len(data) + len(data) % 2
    assert struct.unpack_from("<I", blob, 4)[0] == len(blob) - 8
    assert struct.unpack_from("<I", blob, 40)[0] == len(data)
    with wave.open(io.BytesIO(blob)) as reader:
        assert (reader.getframerate(), reader.getsampwidth(), reader.getnchannels()) == (
            pcm.rate,
            pcm.width,
            pcm.channels,
        )
        frames = reader.readframes(reader.getnframes())
    assert frames == data[: len(data) // pcm.frame_bytes * pcm.frame_bytes]


@pytest.mark.parametrize(
    ("data_bytes", "magic"),
    [
        (0xFFFFFFFF - 37, b"RIFF"),
        (0xFFFFFFFF - 36, b"RF64"),
        (0xFFFFFFFF - 35, b"RF64"),
        (5 * 2**30, b"RF64"),
        (2**40 + 1, b"RF64"),
    ],
)
def test_large_headers(data_bytes: int, magic: bytes) -> None:
    header = wav_header(PcmFormat(), data_bytes)
    assert header[:4] == magic
    if magic == b"RIFF":
        riff_size = struct.unpack_from("<I", header, 4)[0]
    else:
        assert header[4:16] == b"\xff\xff\xff\xffWAVEds64"
        chunk, riff_size, data_size, frames, table = struct.unpack_from("<IQQQI", header, 16)
        assert (chunk, data_size, frames, table) == (28, data_bytes, data_bytes // 2, 0)
        assert header[48:52] == b"fmt "
        assert header[-8:] == b"data\xff\xff\xff\xff"
    assert riff_size == len(header) - 8 + data_bytes + len(wav_padding(data_bytes))


@pytest.mark.parametrize(
    ("data_bytes", "duration", "implausible"),
    [
        (32_000 * 10, 10.0, False),
        (32_000 * 10, 10.9, False),
        (32_000 * 10, 11.1, True),
        (32_000 * 100, 104.9, False),
        (32_000 * 100, 106.0, True),
        (32_000, 0.0, False),
        (32_000 * 2, 0.0, True),
        (0, 812.0, True),
        (32_000, None, False),
        (32_000, float("nan"), False),
        (32_000, float("inf"), False),
    ],
)
def test_plausible_sizes(data_bytes: int, duration: float | None, implausible: bool) -> None:
    assert size_implausible(data_bytes, duration, PcmFormat()) is implausible


def test_pcm_formats_are_checked_and_survive_a_round_trip() -> None:
    pcm = PcmFormat(rate=48_000, width=3, channels=2)
    assert PcmFormat.parse(str(pcm)) == pcm
    for wrong in ({"rate": 0}, {"width": 5}, {"channels": 0}):
        with pytest.raises(ValueError, match="impossible"):
            PcmFormat(**wrong)
    for text in ("", "1/2", "a/b/c", "1/2/3/4"):
        with pytest.raises(ValueError):
            PcmFormat.parse(text)
