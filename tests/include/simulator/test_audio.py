"""Bodies: the same bytes at every offset, and different ones for every seed."""

from __future__ import annotations

import hashlib
import itertools
import struct

import pytest

from include.simulator import audio, limits
from include.simulator.scenario import demo_participants, demo_parts

BODIES = [
    audio.Generated(1, 300_001),
    audio.Generated(2, 10, b"OggS"),
    audio.Tone(440, 2.25),
    audio.Fixed(b"abc"),
    audio.Fixed(b""),
]


@pytest.mark.parametrize("body", BODIES)
def test_every_range_is_a_slice_of_the_whole(body: audio.Body) -> None:
    whole = b"".join(body.read(0, body.length))
    assert len(whole) == body.length
    marks = [mark for mark in (0, 1, 65_535, 65_536, 65_537, 131_072, body.length) if mark <= body.length]
    for start, stop in itertools.combinations_with_replacement(sorted(set(marks)), 2):
        assert b"".join(body.read(start, stop)) == whole[start:stop]
    assert audio.digest_of(body, "sha256") == hashlib.sha256(whole).digest()


def test_generated_blocks_differ_from_each_other_and_between_seeds() -> None:
    blocks = set()
    for seed in range(50):
        body = audio.Generated(seed, 20 * audio.BLOCK)
        whole = b"".join(body.read(0, body.length))
        blocks |= {whole[at : at + audio.BLOCK] for at in range(0, len(whole), audio.BLOCK)}
    assert len(blocks) == 50 * 20
    assert len({b"".join(audio.Generated(seed, 8).read(0, 8)) for seed in range(1000)}) == 1000


def test_a_huge_body_can_be_read_at_its_end() -> None:
    body = audio.Generated(1, 10 * 1024**3)
    assert len(b"".join(body.read(body.length - 100, body.length))) == 100


def test_mu_law_decodes_to_known_samples() -> None:
    samples = struct.unpack("<6h", audio.mu_law_to_pcm(bytes([0xFF, 0x7F, 0x80, 0x00, 0xF0, 0x70])))
    assert samples == (0, 0, 32124, -32124, 120, -120)


def test_the_demo_is_small_and_plausible() -> None:
    size = sum(path.stat().st_size for path in audio.DEMO.rglob("*") if path.is_file())
    assert size < 1_100_000
    assert len(demo_participants()) == 6
    parts = demo_parts(encoded=False)
    assert len(parts) == 9
    assert max(part.relative + (part.duration or 0) for part in parts) <= audio.demo_meeting()["length"]
    assert len({part.audio for part in parts}) == 9


def test_strict_rates_count_refused_requests_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    limiter = limits.RateLimiter()
    for _ in range(60):
        assert limiter.refuse("list", strict=False) is None
    assert limiter.refuse("list", strict=False) == 60
    now[0] += 59.5
    assert limiter.refuse("list", strict=True) == 1
    now[0] += 0.5
    assert limiter.refuse("list", strict=False) is None
    assert limiter.refuse("retrieve", strict=False) is None
