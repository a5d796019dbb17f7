"""Audio made from what is archived: bit for bit, in sync, and never at the cost of what is archived."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tracemalloc
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile as sf

from include.archive import derived
from include.archive import manifest as manifests
from include.archive.audio import PcmFormat
from include.archive.copy import Stop, archive_body
from include.archive.derived import make_aligned, make_flac
from include.archive.layout import part_stem
from include.archive.stores import LocalStore
from include.errors import CodedError
from include.simulator import audio as demo
from tests.include.archive.support import FakeSource

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from include.archive.stores import Store
    from tests.include.archive.support import Archive

FOLDER = "dt=2026-03-04/recording=r1"
RATE = 16_000
SYNC = 0.010
"""Seconds by which tracks may differ."""


class Meeting:
    """A recording in an archive, stored by the engine itself."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.parts: list[manifests.PartEntry] = []

    def add(
        self, who: int, start: float, data: bytes, form: str = "raw", artifact: str = "a1", pcm: PcmFormat | None = None
    ) -> manifests.PartEntry:
        part_id = f"p{len(self.parts)}"
        pcm = pcm or PcmFormat()
        stored = archive_body(
            FakeSource(data),
            self.store,
            part_stem(who, artifact, part_id),
            folder=FOLDER,
            source_format=form,
            ids={"recording_id": "r1", "artifact_id": artifact, "part_id": part_id},
            duration=None,
            pcm=pcm,
        )
        entry = manifests.PartEntry.of(
            stored,
            artifact_id=artifact,
            part_id=part_id,
            participant_id=who,
            start_relative_seconds=start,
            start_absolute=None,
            duration_seconds=len(data) / pcm.bytes_per_second,
        )
        self.parts.append(entry)
        return entry

    def settle(self) -> manifests.Manifest:
        recording = manifests.RecordingFacts(id="r1", created_at=datetime(2026, 3, 4, tzinfo=timezone.utc))
        manifest = manifests.Manifest.build(recording=recording, participants=[], parts=self.parts)
        manifests.publish(self.store, FOLDER, manifest)
        return manifest

    def read(self, key: str) -> bytes:
        return b"".join(self.store.read(f"{FOLDER}/{key}"))

    def index(self, kind: str) -> Any:
        return json.loads(self.read(f"derived/{kind}.json"))

    def decode(self, key: str) -> Any:
        samples, rate = sf.read(io.BytesIO(self.read(key)), dtype="int16", always_2d=True)
        assert rate == RATE
        return samples

    def derived(self) -> list[str]:
        return [info.key for info in self.store.list(f"{FOLDER}/derived/")]


def noise(seconds: float, seed: int = 0) -> Any:
    """Sound that is like nothing but itself: its correlation has one sharp peak."""
    return np.random.default_rng(seed).normal(0, 3000, round(seconds * RATE)).clip(-32768, 32767).astype("<i2")


def lag(one: Any, other: Any) -> float:
    """Seconds by which the second comes after the first, by the peak of their cross-correlation."""
    size = 1 << (len(one) + len(other)).bit_length()
    spectrum = np.fft.rfft(other.astype(float), size) * np.conj(np.fft.rfft(one.astype(float), size))
    found = int(np.argmax(np.fft.irfft(spectrum, size)))
    return (found if found < size // 2 else found - size) / RATE


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    return Meeting(LocalStore(root=str(tmp_path)))


def test_flac_holds_the_very_samples(archive: Archive) -> None:
    meeting = Meeting(archive.store)
    bodies = [noise(seconds, seed).tobytes() for seed, seconds in enumerate([0.5, 3.0, 0.0001])]
    for who, data in enumerate(bodies):
        meeting.add(who, 0.0, data)
    manifest = meeting.settle()
    before = archive.keys()
    made = make_flac(archive.store, FOLDER, manifest)
    assert (made.made, made.skipped, made.is_new) == (3, 0, True)
    for entry, data, part in zip(meeting.index("flac")["files"], bodies, manifest.parts, strict=True):
        flac = meeting.read(entry["key"])
        assert (entry["bytes"], entry["sha256"]) == (len(flac), hashlib.sha256(flac).hexdigest())
        assert entry["made_from"] == {"key": part.key, "sha256": part.sha256, "bytes": part.bytes}
        assert meeting.decode(entry["key"]).astype("<i2").tobytes() == data
        # What the encoder itself noted of its input, at a fixed place of the format (RFC 9639).
        assert (flac[:4], flac[26:42].hex()) == (b"fLaC", hashlib.md5(data).hexdigest())  # noqa: S324
    assert manifests.check(archive.store, FOLDER, manifest, deep=True) == []
    assert set(before) < set(archive.keys())
    again = make_flac(archive.store, FOLDER, manifest)
    assert (again.is_new, again.bytes) == (False, made.bytes)


def test_flac_is_smaller_for_speech(meeting: Meeting) -> None:
    for name in ("maria-a", "priya-b"):
        meeting.add(1, 0.0, demo.demo_clip(name).data)
    made = make_flac(meeting.store, FOLDER, meeting.settle())
    assert made.bytes < 0.7 * made.source_bytes


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (3, 2), (2, 8)])
def test_flac_of_other_samples(meeting: Meeting, width: int, channels: int) -> None:
    data = np.random.default_rng(1).bytes(width * channels * 5000)
    part = meeting.add(1, 0.0, data, pcm=PcmFormat(rate=RATE, width=width, channels=channels))
    assert make_flac(meeting.store, FOLDER, meeting.settle()).made == 1
    (entry,) = meeting.index("flac")["files"]
    wav, _ = sf.read(io.BytesIO(meeting.read(part.key)), dtype="int32", always_2d=True)
    flac, _ = sf.read(io.BytesIO(meeting.read(entry["key"])), dtype="int32", always_2d=True)
    assert np.array_equal(wav, flac)


def test_what_flac_would_not_hold_is_left_out(meeting: Meeting) -> None:
    meeting.add(1, 0.0, noise(1).tobytes()[:-1])
    meeting.add(1, 2.0, demo.demo_clip_encoded("maria-a").data, form="ogg", artifact="a2")
    meeting.add(1, 3.0, noise(1).tobytes(), pcm=PcmFormat(rate=RATE, width=4))
    meeting.add(1, 4.0, b"")
    made = make_flac(meeting.store, FOLDER, meeting.settle())
    assert (made.made, made.skipped) == (0, 4)
    reasons = {one["part_id"]: one["reason"] for one in meeting.index("flac")["skipped"]}
    assert reasons == {"p0": "partial_sample", "p1": "not_wav", "p2": "not_lossless_in_flac", "p3": "not_wav"}


def test_flac_that_decodes_to_something_else_is_not_kept(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting.add(1, 0.0, noise(1).tobytes())
    write = sf.SoundFile.write

    def flawed(self: Any, data: Any) -> None:
        data[len(data) // 2] ^= 1 << 16  # the lowest of sixteen bits of one sample
        write(self, data)

    monkeypatch.setattr(sf.SoundFile, "write", flawed)
    with pytest.raises(CodedError) as caught:
        make_flac(meeting.store, FOLDER, meeting.settle())
    assert (caught.value.code, caught.value.permanent) == ("decoded_differs", True)
    assert meeting.derived() == []


def test_what_is_archived_is_proven_first(meeting: Meeting, tmp_path: Path) -> None:
    part = meeting.add(1, 0.0, noise(1).tobytes())
    manifest = meeting.settle()
    path = tmp_path / FOLDER / part.key
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    for make in (make_flac, make_aligned):
        with pytest.raises(CodedError) as caught:
            make(meeting.store, FOLDER, manifest)
        assert (caught.value.code, caught.value.permanent) == ("integrity_failed", True)
    assert meeting.derived() == []


def test_a_killed_run_is_taken_up(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored, but not yet in an index, is found and neither made nor stored again."""
    for who in range(3):
        meeting.add(who, 0.0, noise(0.2, who).tobytes())
    manifest = meeting.settle()
    finish = derived._finish
    monkeypatch.setattr(derived, "_finish", lambda *_: 1 / 0)
    for make in (make_flac, make_aligned):
        with pytest.raises(ZeroDivisionError):
            make(meeting.store, FOLDER, manifest)
    left = {key: meeting.store.stat(key) for key in meeting.derived()}
    assert len(left) == 4
    monkeypatch.setattr(derived, "_finish", finish)
    assert make_flac(meeting.store, FOLDER, manifest).made == 3
    assert make_aligned(meeting.store, FOLDER, manifest).made == 1
    assert {key: meeting.store.stat(key) for key in left} == left


def without(meeting: Meeting, who: int) -> manifests.Manifest:
    """Do to the archive what a purge does, but for what it removes of ``derived/``."""
    (info,) = [one for one in meeting.store.list(f"{FOLDER}/manifest") if one.key.endswith("manifest.json")]
    meeting.store.delete(info)
    meeting.parts = [part for part in meeting.parts if part.participant_id != who]
    return meeting.settle()


@pytest.mark.parametrize(("make", "kind"), [(make_flac, "flac"), (make_aligned, "aligned")])
def test_a_purge_meanwhile_is_not_undone(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, make: Any, kind: str
) -> None:
    """Somebody is removed just before the last thing is written."""
    meeting = Meeting(archive.store)
    for who in (1, 2):
        meeting.add(who, 0.0, noise(0.2, who).tobytes())
    manifest = meeting.settle()
    put, met = archive.store.put_if_absent, []

    def overtaken(key: str, *rest: Any) -> bool:
        if key.endswith(f"{kind}.json") and not met:
            met.append(without(meeting, 1))
        return put(key, *rest)

    monkeypatch.setattr(archive.store, "put_if_absent", overtaken)
    with pytest.raises(CodedError) as caught:
        make(archive.store, FOLDER, manifest)
    assert (caught.value.code, caught.value.permanent) == ("archive_changed", False)
    assert met
    assert meeting.derived() == []
    assert make(archive.store, FOLDER, met[0]).made == 1
    assert not [key for key in meeting.derived() if "participant=1/" in key]


def test_what_a_killed_try_made_of_somebody_who_was_purged_is_removed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Meeting(archive.store)
    for who in range(9):  # so many that the tracks are WAV first, and FLAC when one is gone
        meeting.add(who, 0.0, noise(0.1, who).tobytes())
    manifest = meeting.settle()
    finish = derived._finish
    monkeypatch.setattr(derived, "_finish", lambda *_: 1 / 0)
    for make in (make_flac, make_aligned):
        with pytest.raises(ZeroDivisionError):
            make(archive.store, FOLDER, manifest)
    monkeypatch.setattr(derived, "_finish", finish)
    manifest = without(meeting, 1)
    assert make_flac(archive.store, FOLDER, manifest).made == 8
    assert make_aligned(archive.store, FOLDER, manifest).made == 1
    assert [key for key in meeting.derived() if "participant=1/" in key or key.endswith(".wav")] == []
    assert [one["participant_id"] for one in meeting.index("aligned")["files"][0]["channels"]] == [0, *range(2, 9)]


@pytest.mark.parametrize("how", ["index", "file", "parts"])
def test_what_is_no_longer_whole_is_made_anew(archive: Archive, how: str) -> None:
    meeting = Meeting(archive.store)
    for who in (1, 2):
        meeting.add(who, 0.0, noise(0.1, who).tobytes())
    manifest = meeting.settle()
    for make, kind in ((make_flac, "flac"), (make_aligned, "aligned")):
        made = make(archive.store, FOLDER, manifest)
        key = f"{FOLDER}/{meeting.index(kind)['files'][0]['key']}"
        if how == "index":
            archive.flip(f"{FOLDER}/derived/{kind}.json", 0)
        elif how == "file":
            archive.remove(key)
        else:
            manifest = without(meeting, 1) if len(meeting.parts) == 2 else meeting.settle()
        again = make(archive.store, FOLDER, manifest)
        assert again.is_new == (how != "parts" or kind == "flac")
        assert again.bytes == made.bytes or how == "parts"
        assert not make(archive.store, FOLDER, manifest).is_new


def test_tracks_are_in_sync(archive: Archive) -> None:
    """Everyone hears the same room; what each heard, placed at its offset, is one sound again."""
    meeting = Meeting(archive.store)
    room = noise(30)
    stretches = {  # participant: parts, each by its begin and end in the room, odd fractions of a sample included
        7: [(0.0, 8.0), (12.3456789, 20.0)],
        3: [(1.00003, 4.5), (5.75, 29.9)],
        900: [(-0.5, 2.0), (17.777777, 25.0)],
    }
    for who, some in stretches.items():
        for begin, end in some:
            first = max(0, round(begin * RATE))
            own = np.random.default_rng(who).normal(0, 300, round(end * RATE) - first)
            heard = (room[first : round(end * RATE)] + own).clip(-32768, 32767).astype("<i2")
            before = np.zeros(max(0, -round(begin * RATE)), "<i2")
            meeting.add(who, begin, before.tobytes() + heard.tobytes())
    manifest = meeting.settle()
    made = make_aligned(archive.store, FOLDER, manifest)
    assert (made.made, made.is_new) == (1, True)
    (file,) = meeting.index("aligned")["files"]
    assert [one["participant_id"] for one in file["channels"]] == [3, 7, 900]
    assert file["key"].endswith(".flac")
    tracks = meeting.decode(file["key"])
    assert tracks.shape == (file["frames"], 3) == (round(29.9 * RATE), 3)
    worst = 0.0
    for column, who in enumerate([3, 7, 900]):
        for begin, end in stretches[who]:
            first, last = max(0, round(begin * RATE)), round(end * RATE)
            worst = max(worst, abs(lag(room[first:last], tracks[first:last, column])))
        # And from the whole of two tracks, without knowing where anything is.
        worst = max(worst, abs(lag(tracks[:, 0], tracks[:, column])), abs(lag(room, tracks[:, column])))
    assert worst <= SYNC
    assert worst <= 1 / RATE
    silent = tracks[round(8.0 * RATE) : round(12.3 * RATE), 1]
    assert not silent.any()
    assert manifests.check(archive.store, FOLDER, manifest) == []
    assert not make_aligned(archive.store, FOLDER, manifest).is_new


def test_the_measure_itself_can_tell() -> None:
    room = noise(5)
    assert lag(room, np.concatenate([np.zeros(200, "<i2"), room])) == pytest.approx(0.0125)
    assert lag(room[200:], room) == pytest.approx(0.0125)


def test_every_sample_is_where_it_belongs(meeting: Meeting) -> None:
    first, second, third = noise(1, 1), noise(1, 2), noise(1, 3)
    meeting.add(1, 0.5, first.tobytes())
    meeting.add(1, 1.0, second.tobytes())  # overlaps by half a second: both are heard
    meeting.add(2, -0.25, third.tobytes())
    meeting.add(3, -9.0, third.tobytes())  # wholly before the recording: a silent channel
    make_aligned(meeting.store, FOLDER, meeting.settle())
    (file,) = meeting.index("aligned")["files"]
    tracks = meeting.decode(file["key"]).astype(int)
    expected = np.zeros((2 * RATE, 3), int)
    expected[RATE // 2 : RATE * 3 // 2, 0] += first
    expected[RATE:, 0] += second
    expected[: RATE * 3 // 4, 1] = third[RATE // 4 :]
    assert np.array_equal(tracks, expected.clip(-32768, 32767))
    assert [part["cut"] for channel in file["channels"] for part in channel["parts"]] == [0, 0, RATE // 4, RATE]


@pytest.mark.parametrize("people", [8, 9, 40])
def test_above_eight_channels_it_is_wav(meeting: Meeting, people: int) -> None:
    for who in range(people):
        meeting.add(who, who / 10, noise(0.3, who).tobytes())
    make_aligned(meeting.store, FOLDER, meeting.settle())
    (file,) = meeting.index("aligned")["files"]
    assert file["key"] == ("derived/aligned.flac" if people <= 8 else "derived/aligned.wav")
    tracks = meeting.decode(file["key"])
    for who in range(people):
        start = round(who / 10 * RATE)
        assert np.array_equal(tracks[start : start + round(0.3 * RATE), who], noise(0.3, who))


def test_from_four_gib_it_is_rf64(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "LARGEST_WAV", 10_000)
    for who in range(9):
        meeting.add(who, 0.0, noise(0.3, who).tobytes())
    make_aligned(meeting.store, FOLDER, meeting.settle())
    (file,) = meeting.index("aligned")["files"]
    assert file["key"] == "derived/aligned.wav"
    assert meeting.read(file["key"])[:4] == b"RF64"
    assert np.array_equal(meeting.decode(file["key"])[:, 5], noise(0.3, 5))


def test_compressed_parts_are_in_sync_with_uncompressed_ones(meeting: Meeting) -> None:
    """Ogg Vorbis and MP3, whose encoders add a delay that a decoder has to take off."""
    names = ["maria-a", "phone-a"]
    for who, name in enumerate(names):
        meeting.add(who, 1.0 + who, demo.demo_clip_encoded(name).data, form="ogg")
    assert [part.media_type for part in meeting.parts] == ["audio/ogg", "audio/mpeg"]
    make_aligned(meeting.store, FOLDER, meeting.settle())
    (file,) = meeting.index("aligned")["files"]
    tracks = meeting.decode(file["key"])
    for who, name in enumerate(names):
        spoken = np.frombuffer(demo.demo_clip(name).data, "<i2")
        placed = np.concatenate([np.zeros((1 + who) * RATE, "<i2"), spoken])
        assert abs(lag(placed, tracks[:, who])) <= SYNC


def test_of_two_forms_the_lossless_one_is_taken(meeting: Meeting) -> None:
    meeting.add(1, 0.0, demo.demo_clip_encoded("maria-a").data, form="ogg", artifact="a1")
    meeting.add(1, 0.0, noise(0.5).tobytes(), artifact="a2")
    meeting.add(2, 0.0, b"", artifact="a2")
    made = make_aligned(meeting.store, FOLDER, meeting.settle())
    (file,) = meeting.index("aligned")["files"]
    assert (file["artifact_id"], made.skipped) == ("a2", 2)


def test_nobody_spoke(meeting: Meeting) -> None:
    manifest = meeting.settle()
    assert make_aligned(meeting.store, FOLDER, manifest).made == 0
    assert make_flac(meeting.store, FOLDER, manifest).made == 0


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([(0.0, PcmFormat()), (0.0, PcmFormat(rate=8000))], "sample rates"),
        ([(1e9, PcmFormat())], "days after"),
    ],
    ids=["rates", "misplaced"],
)
def test_what_does_not_fit_is_said(meeting: Meeting, parts: Iterable[tuple[float, PcmFormat]], said: str) -> None:
    for start, pcm in parts:
        meeting.add(1, start, noise(0.1).tobytes(), pcm=pcm)
    with pytest.raises(CodedError, match=said) as caught:
        make_aligned(meeting.store, FOLDER, meeting.settle())
    assert (caught.value.code, caught.value.permanent) == ("audio_unfit", True)
    assert meeting.derived() == []


def test_without_the_library_it_says_what_to_install(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting.add(1, 0.0, noise(0.1).tobytes())
    manifest = meeting.settle()
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(CodedError, match=r"requirements/audio\.in") as caught:
        make_flac(meeting.store, FOLDER, manifest)
    assert (caught.value.code, caught.value.permanent) == ("audio_library_missing", True)


def test_it_can_be_stopped(meeting: Meeting) -> None:
    meeting.add(1, 0.0, noise(0.1).tobytes())
    stop = Stop()
    stop.set()
    for make in (make_flac, make_aligned):
        with pytest.raises(CodedError) as caught:
            make(meeting.store, FOLDER, meeting.settle(), stop=stop)
        assert (caught.value.code, caught.value.permanent) == ("stopped", False)


def test_mp3_that_tells_its_delay(meeting: Meeting) -> None:
    sound = np.convolve(noise(3), np.ones(8) / 8, "same").astype("<i2")
    body = io.BytesIO()
    sf.write(body, sound, RATE, format="MP3", subtype="MPEG_LAYER_III")
    meeting.add(1, 2.0, body.getvalue(), form="mp3")
    make_aligned(meeting.store, FOLDER, meeting.settle())
    (file,) = meeting.index("aligned")["files"]
    assert abs(lag(np.concatenate([np.zeros(2 * RATE, "<i2"), sound]), meeting.decode(file["key"])[:, 0])) <= SYNC


@pytest.mark.parametrize("make", [make_flac, make_aligned])
def test_memory_stays_flat(meeting: Meeting, make: Any) -> None:
    """Ten minutes of four people, 77 MB, in a few megabytes."""
    minutes = noise(60).tobytes() * 10
    for who in range(4):
        meeting.add(who, who / 3, minutes)
    manifest = meeting.settle()
    tracemalloc.start()
    try:
        made = make(meeting.store, FOLDER, manifest)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.source_bytes > 76_000_000
    assert peak < 24_000_000
