from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
import wave
import zlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ConnectionClosedError

from include.archive import copy as copy_module
from include.archive import errors
from include.archive.audio import PcmFormat, wav_header
from include.archive.copy import Stop, StoredPart
from include.archive.stores import s3 as s3_module
from include.archive.stores.s3 import PART_BYTES, S3Store
from include.archive.stores.s3_wire import Body
from include.errors import CodedError
from tests.include.archive.conftest import BUCKET
from tests.include.archive.support import IDS, STEM, Archive, FakeBody, FakeSource, audio, run, samples, sha256

if TYPE_CHECKING:
    from tests.strict_s3.process import Process

OGG = f"{STEM}.ogg"
WAV = f"{STEM}.wav"


def is_clean(archive: Archive) -> bool:
    return (archive.keys(), archive.leftovers()) == ([], [])


# -- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1_000_000, PART_BYTES, PART_BYTES + 1])
def test_a_body_is_stored_as_it_came(archive: Archive, size: int) -> None:
    data = b"fLaC"[:size] + audio(size)[4:]
    source = FakeSource(data)
    part = run(archive, source, source_format="flac")
    assert archive.get(part.key) == data
    assert archive.keys() == [part.key]
    assert archive.leftovers() == []
    assert (part.bytes, part.sha256) == (size, sha256(data))
    assert (part.source_bytes, part.source_sha256) == (size, sha256(data))
    assert part.verified_by[0] == "content-length"
    assert part.verified_by[1:] == [archive.proof]
    assert (part.action, part.transferred, part.pcm, part.warnings) == ("stored", size, None, [])
    assert StoredPart.from_dict(json.loads(json.dumps(part.to_dict()))) == part


@pytest.mark.parametrize("size", [2, 32_000, 320_001, PART_BYTES - 44, PART_BYTES - 43, PART_BYTES])
def test_samples_get_a_header_and_are_otherwise_untouched(archive: Archive, size: int) -> None:
    data = samples(size)
    part = run(archive, FakeSource(data), source_format="raw", duration=size / 32_000)
    stored = archive.get(WAV)
    assert stored == wav_header(PcmFormat(), size) + data + bytes(size % 2)
    with wave.open(io.BytesIO(stored)) as reader:
        assert (reader.getframerate(), reader.getsampwidth(), reader.getnchannels()) == (16_000, 2, 1)
        assert reader.readframes(reader.getnframes()) == data[: size // 2 * 2]
    assert (part.key, part.media_type, part.bytes, part.sha256) == (WAV, "audio/wav", len(stored), sha256(stored))
    assert (part.source_bytes, part.source_sha256) == (size, sha256(data))
    assert part.pcm == {"rate": 16_000, "width": 2, "channels": 1}
    assert part.warnings == ["pcm_format_assumed"] + ["odd_length"] * (size % 2)


def test_the_folder_comes_before_the_key_and_is_not_part_of_it(archive: Archive) -> None:
    part = run(archive, FakeSource(audio(10)), folder="dt=2026-03-04/recording=rec-1")
    assert part.key == OGG
    assert archive.keys() == [f"dt=2026-03-04/recording=rec-1/{OGG}"]


def test_another_pcm_format(archive: Archive) -> None:
    pcm = PcmFormat(rate=48_000, width=2, channels=2)
    part = run(archive, FakeSource(samples(192_000 * 3)), source_format="raw", duration=3.0, pcm=pcm)
    assert part.pcm == pcm.to_dict()
    assert part.warnings == ["pcm_format_assumed"]
    with wave.open(io.BytesIO(archive.get(WAV))) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getnframes()) == (48_000, 2, 144_000)


@pytest.mark.parametrize("duration", [0.0, 812.44])
def test_an_empty_body_is_an_empty_object(archive: Archive, duration: float) -> None:
    part = run(archive, FakeSource(b""), source_format="raw", duration=duration)
    assert archive.get(f"{STEM}.empty") == b""
    assert (part.key, part.media_type, part.bytes) == (f"{STEM}.empty", "application/x-empty", 0)
    assert part.sha256 == part.source_sha256 == hashlib.sha256().hexdigest()
    assert part.warnings == ["empty"]
    again = run(archive, FakeSource(b""), source_format="raw", duration=duration)
    assert (again.action, again.key) == ("already_present", part.key)


def test_a_size_that_disagrees_with_the_duration_is_noted(archive: Archive) -> None:
    part = run(archive, FakeSource(samples(32_000)), source_format="raw", duration=60.0)
    assert part.warnings == ["pcm_format_assumed", "size_implausible"]


def test_two_parts_of_one_participant_are_two_objects(archive: Archive) -> None:
    for number in (1, 2):
        run(archive, FakeSource(audio(100, seed=number)), stem=f"participant=100/artifact-1/part-{number}")
    assert len(archive.keys()) == 2
    assert archive.get("participant=100/artifact-1/part-2.ogg") == audio(100, seed=2)


def test_notes_hold_ids_only(archive: Archive) -> None:
    run(archive, FakeSource(audio(100)), ids={"recording_id": "rec-1", "part_id": "Ada Example <ada@example.org>\n"})
    info = archive.store.stat(OGG)
    assert info is not None
    assert info.metadata["recording-id"] == "rec-1"
    assert info.metadata["part-id"].startswith("sha256-")
    assert "example" not in repr(info.metadata).lower()


def test_progress_is_told(archive: Archive) -> None:
    seen: list[tuple[int, int | None]] = []
    run(archive, FakeSource(audio(3_500_000)), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3_500_000, 3_500_000)
    assert 3 <= len(seen) <= 5
    assert seen == sorted(seen)


# -- cuts ------------------------------------------------------------------------------------------------------------

CUT_PART = 5 * 2**20  # the smallest part that a server takes
SIZE = CUT_PART + 1_000
CUTS = [0, 1, CUT_PART - 1, CUT_PART, CUT_PART + 1, SIZE - 1]


@pytest.mark.parametrize("place", CUTS)
@pytest.mark.parametrize("way", ["resumed", "ranges ignored", "no version mark", "closed early"])
def test_a_cut_anywhere(archive: Archive, monkeypatch: pytest.MonkeyPatch, place: int, way: str) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", CUT_PART)
    data = audio(SIZE)
    source = FakeSource(
        data,
        cuts=[place],
        ranges=way != "ranges ignored",
        etag=None if way == "no version mark" else '"v1"',
        closes=way == "closed early",
    )
    part = run(archive, source)
    assert archive.get(OGG) == data
    assert part.sha256 == sha256(data)
    assert archive.leftovers() == []
    resumed = way in {"resumed", "closed early"} and place > 0
    assert part.transferred == source.sent == (SIZE if resumed else SIZE + place)
    assert source.opened == [(0, None), (place, '"v1"') if way != "no version mark" and place else (0, None)]


@pytest.mark.parametrize("place", [0, 1, 50_000, 99_999])
def test_samples_survive_cuts(archive: Archive, place: int) -> None:
    data = samples(100_000)
    run(archive, FakeSource(data, cuts=[place]), source_format="raw")
    assert archive.get(WAV)[44:] == data


def test_many_cuts_cost_little_where_the_source_resumes(archive: Archive) -> None:
    data = audio(2_000_000)
    cuts = sorted(random.Random(7).sample(range(len(data)), 10))
    source = FakeSource(data, cuts=cuts)
    part = run(archive, source)
    assert archive.get(OGG) == data
    assert part.transferred == len(data)
    assert len(source.opened) == 11


def test_many_cuts_are_survived_while_each_gets_further(archive: Archive) -> None:
    data = audio(100_000)
    run(archive, FakeSource(data, cuts=range(1_000, 99_000, 5_000), etag=None))
    assert archive.get(OGG) == data


@pytest.mark.parametrize("place", [0, 1, 50_000, 99_999])
@pytest.mark.parametrize("etag", ['"v1"', None])
@pytest.mark.parametrize("closes", [True, False])
def test_a_source_that_never_gets_further_is_given_up(
    archive: Archive, place: int, etag: str | None, closes: bool
) -> None:
    source = FakeSource(audio(100_000), breaks_at=place, etag=etag, closes=closes)
    with pytest.raises(CodedError) as caught:
        run(archive, source)
    assert caught.value.code == ("source_cut" if closes else "media_cut")
    assert not caught.value.permanent
    assert len(source.opened) <= copy_module.MAX_FUTILE_ATTEMPTS + 1
    assert is_clean(archive)


def test_a_source_that_crawls_from_cut_to_cut_is_given_up(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "LOWEST_PACE", 1e12)
    source = FakeSource(audio(100_000), cuts=range(10, 100_000, 10))
    with pytest.raises(CodedError) as caught:
        run(archive, source)
    assert (caught.value.code, caught.value.permanent) == ("media_cut", False)
    assert len(source.opened) == copy_module.MAX_FUTILE_ATTEMPTS
    assert is_clean(archive)


def test_a_source_that_crawls_is_given_up(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), sleep=lambda pause: None)
    monkeypatch.setattr(copy_module, "time", clock)
    source = FakeSource(audio(100_000), cuts=range(100, 99_000, 100))
    with pytest.raises(CodedError) as caught:
        run(archive, source)
    assert (caught.value.code, caught.value.permanent) == ("media_cut", False)
    assert len(source.opened) <= copy_module.MAX_FUTILE_ATTEMPTS + 1
    assert is_clean(archive)


@pytest.mark.parametrize("difference", [-10, 10])
def test_a_body_of_another_length_than_declared_is_never_stored(archive: Archive, difference: int) -> None:
    with pytest.raises(errors.SourceCutError):
        run(archive, FakeSource(audio(100_000), length=100_000 + difference))
    assert is_clean(archive)


def test_a_permanent_error_ends_it_at_once(archive: Archive) -> None:
    class GoneError(CodedError):
        code = "media_forbidden"

    source = FakeSource(audio(100_000), cuts=[50_000], error=GoneError)
    with pytest.raises(GoneError):
        run(archive, source)
    assert len(source.opened) == 1
    assert is_clean(archive)


def test_a_source_that_asks_for_much_patience_is_left_to_the_caller(archive: Archive) -> None:
    class BusyError(CodedError):
        code = "rate_limited"
        permanent = False
        default_retry_after = 120.0

    source = FakeSource(audio(100_000), cuts=[50_000], error=BusyError)
    with pytest.raises(BusyError) as caught:
        run(archive, source)
    assert caught.value.retry_after == 120
    assert is_clean(archive)


def test_a_body_that_changes_between_two_openings_is_read_anew(archive: Archive) -> None:
    new = audio(100_000, seed=9)
    source = FakeSource(audio(100_000, seed=1), cuts=[60_000], later=(new, '"v2"'))
    run(archive, source)
    assert archive.get(OGG) == new


def test_a_source_that_ignores_the_condition_is_not_spliced(archive: Archive) -> None:
    new = audio(100_000, seed=9)

    class Careless(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None) -> Any:
            return super().open(offset, None)

    run(archive, Careless(audio(100_000, seed=1), cuts=[60_000], later=(new, '"v2"')))
    assert archive.get(OGG) == new


# -- declared checksums ----------------------------------------------------------------------------------------------


def declared(data: bytes, name: str) -> str:
    if name == "crc32":
        return f"{zlib.crc32(data):08x}"
    return hashlib.new(name, data).hexdigest().upper()


@pytest.mark.parametrize("name", ["sha256", "md5", "crc32"])
@pytest.mark.parametrize("source_format", ["ogg", "raw"])
def test_declared_checksums_count(archive: Archive, name: str, source_format: str) -> None:
    data = audio(5000) if source_format == "ogg" else samples(5000)
    part = run(archive, FakeSource(data, checksums={name: declared(data, name)}), source_format=source_format)
    assert part.verified_by == ["content-length", "source-checksum", archive.proof]


@pytest.mark.parametrize("name", ["sha256", "md5", "crc32"])
def test_a_bit_flipped_on_the_way_is_fetched_again(archive: Archive, name: str) -> None:
    data = audio(5000)
    flipped = bytearray(data)
    flipped[3000] ^= 1
    source = FakeSource(bytes(flipped), checksums={name: declared(data, name)}, later=(data, '"v1"'))
    part = run(archive, source)
    assert archive.get(OGG) == data
    assert "source-checksum" in part.verified_by
    assert len(source.opened) == 2


def test_a_body_that_never_matches_is_never_stored(archive: Archive) -> None:
    source = FakeSource(audio(5000), checksums={"sha256": "0" * 64})
    with pytest.raises(errors.SourceChecksumError):
        run(archive, source)
    assert len(source.opened) == copy_module.MAX_FUTILE_ATTEMPTS
    assert is_clean(archive)


def test_checksums_that_nobody_can_check_are_not_claimed(archive: Archive) -> None:
    part = run(archive, FakeSource(audio(5000), checksums={"crc64nvme": "00"}))
    assert part.verified_by == ["content-length", archive.proof]


# -- bodies without a length -----------------------------------------------------------------------------------------


def test_a_body_without_a_length_is_marked(archive: Archive) -> None:
    part = run(archive, FakeSource(audio(5000), length=None))
    assert part.verified_by == ["length_unverified", archive.proof]
    assert part.warnings == ["length_unverified"]


def test_samples_without_a_length_are_read_twice(archive: Archive) -> None:
    data = samples(3_000_001)
    source = FakeSource(data, length=None)
    part = run(archive, source, source_format="raw")
    assert archive.get(WAV) == wav_header(PcmFormat(), len(data)) + data + b"\0"
    assert part.transferred == 2 * len(data)
    assert part.warnings == ["length_unverified", "pcm_format_assumed", "odd_length"]
    again = run(archive, FakeSource(data, length=None), source_format="raw")
    assert (again.action, again.transferred, again.warnings) == ("already_present", 0, part.warnings)


@pytest.mark.parametrize("second", [samples(5000, seed=2), samples(4000, seed=1), samples(6000, seed=1)])
def test_two_readings_must_agree(archive: Archive, second: bytes) -> None:
    source = FakeSource(samples(5000, seed=1), length=None, later=(second, '"v1"'))
    try:
        run(archive, source, source_format="raw")
    except errors.IntegrityError:
        assert is_clean(archive)
    else:
        assert archive.get(WAV)[44:] == second


def test_a_body_that_is_never_the_same_twice_is_not_stored(archive: Archive) -> None:
    seeds = itertools.count()

    class Fickle(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None) -> Any:
            self.data = samples(5000, seed=next(seeds))
            return super().open(offset, if_match)

    with pytest.raises(errors.SourceChangedError):
        run(archive, Fickle(b"", length=None, etag=None), source_format="raw")
    assert is_clean(archive)


# -- pages in place of audio -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [b"<html><body>Sign in</body></html>", b"<?xml version='1.0'?><Error/>", b'{"a": 1}'])
def test_text_pages_are_never_stored(archive: Archive, page: bytes) -> None:
    with pytest.raises(errors.UnexpectedContentError):
        run(archive, FakeSource(page, content_type="text/html"), source_format="raw")
    assert is_clean(archive)


# -- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_format", ["ogg", "raw"])
def test_a_second_run_moves_nothing(archive: Archive, source_format: str) -> None:
    data = audio(50_000) if source_format == "ogg" else samples(50_001)
    first = run(archive, FakeSource(data), source_format=source_format, duration=1.5)
    before = archive.modified(first.key)
    source = FakeSource(data)
    # A setting that was changed in between does not change what is stored.
    again = run(archive, source, source_format=source_format, duration=1.5, pcm=PcmFormat(rate=8_000))
    assert source.opened == []
    assert again.to_dict() == {
        **first.to_dict(),
        "action": "already_present",
        "transferred": 0,
        "warnings": again.warnings,
    }
    assert archive.modified(first.key) == before


def test_a_large_second_run_stores_nothing(archive: Archive) -> None:
    data = audio(PART_BYTES + 10)
    first = run(archive, FakeSource(data))
    before = archive.modified(OGG)
    again_source = FakeSource(data)
    again = run(archive, again_source)
    assert again_source.opened == []
    assert again == replace(first, action="already_present", transferred=0, verified_by=again.verified_by)
    assert archive.modified(OGG) == before
    assert archive.leftovers() == []


@pytest.mark.parametrize("size", [PART_BYTES + 10, PART_BYTES + 11])
def test_a_large_second_run_recognises_samples(archive: Archive, size: int) -> None:
    data = samples(size)
    first = run(archive, FakeSource(data), source_format="raw")
    again_source = FakeSource(data)
    again = run(archive, again_source, source_format="raw")
    assert again_source.opened == []
    assert again == replace(first, action="already_present", transferred=0, verified_by=again.verified_by)


def test_the_stores_own_checksum_is_proof_enough(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    data = audio(50_000)
    run(archive, FakeSource(data))
    stat = type(archive.store).stat

    def with_checksum(self: Any, key: str) -> Any:
        info = stat(self, key)
        return copy_module.replace(info, checksums={"sha256": sha256(data)})

    monkeypatch.setattr(type(archive.store), "stat", with_checksum)
    monkeypatch.setattr(type(archive.store), "read", lambda self, key: pytest.fail("nothing needs to be read"))
    again = run(archive, FakeSource(data))
    assert again.verified_by == ["content-length", "store-checksum"]
    monkeypatch.setattr(
        type(archive.store),
        "stat",
        lambda self, key: copy_module.replace(stat(self, key), checksums={"sha256": "0" * 64}),
    )
    with pytest.raises(errors.ContentConflictError):
        run(archive, FakeSource(data))


def test_an_equal_foreign_object_is_accepted(archive: Archive) -> None:
    data = samples(50_000)
    archive.put(WAV, wav_header(PcmFormat(), len(data)) + data)
    part = run(archive, FakeSource(data), source_format="raw")
    assert (part.action, part.transferred) == ("already_present", len(data))
    assert part.verified_by == ["content-length", "read-back"]
    assert archive.keys() == [WAV]


@pytest.mark.parametrize("foreign", [b"", b"x", audio(50_000, seed=2), audio(50_001, seed=1)])
@pytest.mark.parametrize("extension", ["ogg", "wav", "empty"])
def test_another_foreign_object_is_a_conflict(archive: Archive, foreign: bytes, extension: str) -> None:
    archive.put(f"{STEM}.{extension}", foreign)
    with pytest.raises(errors.ContentConflictError) as caught:
        run(archive, FakeSource(audio(50_000, seed=1)))
    assert caught.value.permanent
    assert archive.keys() == [f"{STEM}.{extension}"]
    assert archive.get(f"{STEM}.{extension}") == foreign


@pytest.mark.parametrize("size", [50_000, 49_999])
@pytest.mark.parametrize("keeps_notes", [True, False])
def test_a_tampered_object_is_a_conflict(archive: Archive, size: int, keeps_notes: bool) -> None:
    data = audio(50_000)
    run(archive, FakeSource(data))
    info = archive.store.stat(OGG)
    assert info is not None
    tampered = bytearray(data[:size])
    tampered[20_000] ^= 1
    archive.put(OGG, bytes(tampered), dict(info.metadata) if keeps_notes else None)
    with pytest.raises(errors.ContentConflictError):
        run(archive, FakeSource(data))
    assert archive.get(OGG) == bytes(tampered)


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "zz"},
        {"source-bytes": "many"},
        {"source-bytes": "-5"},
        {"verified-by": ""},
        {"recording-id": "other"},
    ],
)
def test_notes_are_not_believed_blindly(archive: Archive, changes: dict[str, str]) -> None:
    data = audio(50_000)
    run(archive, FakeSource(data))
    info = archive.store.stat(OGG)
    assert info is not None
    archive.put(OGG, data, {**info.metadata, **changes})
    source = FakeSource(data)
    part = run(archive, source)
    assert (part.action, part.sha256, part.source_bytes) == ("already_present", sha256(data), 50_000)
    assert source.opened or "verified-by" in changes


@pytest.mark.parametrize("name", ["sha256", "source-bytes"])
def test_notes_that_contradict_the_bytes_are_a_conflict(local: Archive, name: str) -> None:
    data = audio(50_000)
    run(local, FakeSource(data))
    info = local.store.stat(OGG)
    assert info is not None
    local.put(OGG, data, {**info.metadata, name: "0" * 64 if name == "sha256" else "49999"})
    with pytest.raises(errors.ContentConflictError):
        run(local, FakeSource(data))


def test_what_a_manifest_contradicts_is_never_stored_nor_accepted(archive: Archive) -> None:
    data = audio(50_000)
    with pytest.raises(errors.ContentConflictError, match="manifest"):
        run(archive, FakeSource(audio(50_000, seed=1)), expected_sha256=sha256(data))
    assert is_clean(archive)
    assert run(archive, FakeSource(data), expected_sha256=sha256(data)).action == "stored"
    assert run(archive, FakeSource(data), expected_sha256=sha256(data)).action == "already_present"
    with pytest.raises(errors.ContentConflictError, match="manifest"):
        run(archive, FakeSource(data), expected_sha256="0" * 64)
    assert archive.get(OGG) == data


def test_one_part_under_two_extensions_is_a_conflict(archive: Archive) -> None:
    data = audio(100)
    archive.put(OGG, data)
    archive.put(WAV, data)
    with pytest.raises(errors.ContentConflictError, match="more than once"):
        run(archive, FakeSource(data))


def test_neighbours_are_not_taken_for_the_part(archive: Archive) -> None:
    for neighbour in (f"{STEM}0.ogg", f"{STEM}-1.ogg", f"{STEM}.ogg.bak", f"{STEM}.ogg/x.ogg"):
        if archive.kind == "s3" or not neighbour.startswith(f"{STEM}.ogg/"):
            archive.put(neighbour, b"neighbour")
    run(archive, FakeSource(audio(100)))
    assert archive.get(OGG) == audio(100)


def test_leftovers_of_an_earlier_try_are_removed(archive: Archive) -> None:
    for _ in range(2):
        dead = archive.store.write(OGG, media_type="audio/ogg")
        dead.write(memoryview(audio(PART_BYTES + 1)))
    assert len(archive.leftovers()) == 2
    run(archive, FakeSource(audio(100)))
    assert archive.leftovers() == []
    archive.store.write(OGG, media_type="audio/ogg").write(memoryview(audio(PART_BYTES + 1)))
    assert run(archive, FakeSource(audio(100))).action == "already_present"
    assert archive.leftovers() == []


# -- two at once -----------------------------------------------------------------------------------------------------


def test_two_runs_race_for_one_key(archive: Archive) -> None:
    for turn in range(20):
        data = audio(30_000, seed=turn)
        stem = f"participant=100/artifact-1/race-{turn}"
        start, parts = threading.Barrier(2), []

        def copy(data: bytes = data, stem: str = stem, start: threading.Barrier = start, parts: Any = parts) -> None:
            start.wait()
            parts.append(run(archive, FakeSource(data), stem=stem))

        threads = [threading.Thread(target=copy) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(part.action for part in parts) == ["already_present", "stored"]
        assert archive.get(f"{stem}.ogg") == data
    assert len(archive.keys()) == 20
    assert archive.leftovers() == []


@pytest.mark.parametrize("size", [1000, PART_BYTES + 1000])
@pytest.mark.parametrize("same", [True, False])
def test_another_run_finishes_in_between(archive: Archive, size: int, same: bool) -> None:
    data = audio(size)
    other = data if same else audio(size, seed=5)

    class Overtaken(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None) -> Any:
            archive.put(OGG, other)
            return super().open(offset, if_match)

    if same:
        part = run(archive, Overtaken(data))
        assert (part.action, part.verified_by[-1]) == ("already_present", "read-back")
    else:
        with pytest.raises(errors.ContentConflictError):
            run(archive, Overtaken(data))
    assert archive.get(OGG) == other
    assert archive.leftovers() == []


def test_a_try_that_was_cleaned_up_begins_again(archive: Archive) -> None:
    data = audio(200_000)

    class CleanedUp(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None) -> Any:
            body = super().open(offset, if_match)
            if len(self.opened) == 1:
                readinto, self.calls = body.readinto, 0

                def spoil(buffer: memoryview) -> int:
                    self.calls += 1
                    if self.calls == 2:
                        archive.store.abort_stale(STEM)
                    return readinto(buffer)

                body.readinto = spoil  # type: ignore[method-assign]
            return body

    part = run(archive, CleanedUp(data, chunk=50_000))
    assert part.action == "stored"
    assert archive.get(OGG) == data


# -- stops and failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_000_000, PART_BYTES + 1_000_000])
def test_a_stop_leaves_nothing(archive: Archive, size: int) -> None:
    stop = Stop()
    with pytest.raises(errors.StoppedError) as caught:
        run(archive, FakeSource(audio(size)), stop=stop, progress=lambda done, total: stop.set())
    assert not caught.value.permanent
    assert is_clean(archive)


def test_a_stop_ends_the_pause_between_attempts(archive: Archive) -> None:
    stop = Stop()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(errors.StoppedError):
        run(archive, FakeSource(audio(100), breaks_at=50), stop=stop, backoff=6000.0)
    assert time.monotonic() - started < 60
    timer.join()


def test_an_interruption_leaves_nothing(archive: Archive) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(archive, FakeSource(audio(PART_BYTES + 2_000_000)), progress=interrupt)
    assert is_clean(archive)


@pytest.mark.parametrize("size", [1000, PART_BYTES + 1000])
def test_a_store_that_keeps_other_bytes_is_found_out(
    archive: Archive, s3: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def spoil(data: Any) -> bytes:
        return bytes([data[0] ^ 1]) + bytes(data[1:])

    if archive.kind == "local":
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, spoil(data)))
    else:
        put, frames = S3Store.put, Body.__iter__

        def spoilt(self: Body) -> Any:
            # The second frame holds the first bytes of the body.
            return (spoil(frame) if number == 1 else frame for number, frame in enumerate(frames(self)))

        monkeypatch.setattr(S3Store, "put", lambda self, key, data, **kw: put(self, key, spoil(data), **kw))
        monkeypatch.setattr(Body, "__iter__", spoilt)
    with pytest.raises(errors.StoredBytesDifferError) as caught:
        run(archive, FakeSource(audio(size)))
    assert not caught.value.permanent
    assert is_clean(archive)


def test_a_lost_answer_still_counts(s3: Any) -> None:
    class Lossy:
        def __getattr__(self, name: str) -> Any:
            call = getattr(s3, name)
            if name not in {"put_object", "complete_multipart_upload"}:
                return call

            def lose(**kwargs: Any) -> None:
                call(**kwargs)
                raise ConnectionClosedError(endpoint_url="x")

            return lose

    for size in (1000, PART_BYTES + 1000):
        client: Any = Lossy()
        store = S3Store(bucket=BUCKET, prefix=f"lossy-{size}", client=client)
        data = audio(size)
        part = copy_module.archive_body(
            FakeSource(data), store, STEM, source_format="ogg", ids=IDS, duration=None, backoff=0.0
        )
        assert (part.sha256, part.bytes) == (sha256(data), size)
        assert s3.get_object(Bucket=BUCKET, Key=f"lossy-{size}/{OGG}")["Body"].read() == data
        assert s3.list_multipart_uploads(Bucket=BUCKET, Prefix=f"lossy-{size}/").get("Uploads", []) == []


def test_refusals_come_before_any_transfer(s3: Any) -> None:
    source = FakeSource(audio(1000))
    with pytest.raises(errors.NoSuchBucketError):
        copy_module.archive_body(
            source,
            S3Store(bucket="no-such-bucket", prefix="", client=s3),
            STEM,
            source_format="ogg",
            ids=IDS,
            duration=None,
        )
    assert source.opened == []


@pytest.mark.parametrize("size", [1000, PART_BYTES - 1000, PART_BYTES + 1000])
def test_every_object_is_sent_with_its_checksum_and_never_replaces_one(
    bucket: Archive, strict: Process, size: int
) -> None:
    data = audio(size)
    run(bucket, FakeSource(data))
    sent = [entry for entry in strict.journal() if entry["operation"] in {"PutObject", "UploadPart"}]
    assert sum(entry["bytes"] for entry in sent) >= size
    sums = {"PutObject": "x-amz-checksum-sha256", "UploadPart": "x-amz-checksum-crc32"}
    assert all(sums[entry["operation"]] in entry["checksums"] for entry in sent)
    (final,) = [entry for entry in strict.journal() if entry["conditions"]]
    assert final["conditions"] == {"if-none-match": "*"}


# -- memory ----------------------------------------------------------------------------------------------------------

MEMORY_SCRIPT = """
import resource, sys
from include.archive.copy import archive_body
from include.archive.stores import open_store

TOTAL = 200 * 2**20
BLOCK = bytes(range(256)) * 1024

class Body:
    length, offset, etag, content_type, checksums = TOTAL, 0, None, None, {}
    position = 0
    def readinto(self, buffer):
        count = min(len(buffer), len(BLOCK), TOTAL - self.position)
        buffer[:count] = BLOCK[:count]
        if self.position == 0:
            buffer[:4] = b"OggS"
        self.position += count
        return count
    def close(self):
        pass

class Source:
    def __init__(self, body):
        self.body = body
    def open(self, offset=0, if_match=None):
        return self.body()

class Small(Body):
    length = 2**20
    def readinto(self, buffer):
        return 0 if self.position >= self.length else super().readinto(buffer[: self.length - self.position])

def client():
    from tests.include.archive.conftest import make_client
    return make_client(sys.argv[2])

store = open_store(sys.argv[1], s3_client=client)
def run(body, stem):
    return archive_body(Source(body), store, stem, source_format="ogg", ids={}, duration=None)
run(Small, "small")  # imports and connections are made by now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
part = run(Body, "large")
assert part.bytes == TOTAL
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_memory_stays_flat(kind: str, tmp_path: Any, s3: Any, s3_endpoint: str) -> None:
    uri = f"file://{tmp_path}/archive" if kind == "local" else f"s3://{BUCKET}/memory"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, uri, s3_endpoint], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 40 * 1024  # KiB
    if kind == "s3":
        s3.delete_object(Bucket=BUCKET, Key="memory/large.ogg")


def test_few_copies_at_once_have_large_buffers(archive: Archive) -> None:
    for _ in range(copy_module.LARGE_BUFFERS + 1):  # none of which keeps its own
        with pytest.raises(CodedError):
            run(archive, FakeSource(audio(10), breaks_at=0))
    many = copy_module.LARGE_BUFFERS + 2
    all_read, sizes = threading.Barrier(many), []

    class Body(FakeBody):
        def readinto(self, buffer: memoryview) -> int:
            if self.offset == self._position:
                sizes.append(len(buffer))
                all_read.wait(30)
            return super().readinto(buffer)

    class Source(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None) -> FakeBody:
            return Body(self, self.data, self.etag, offset)

    copies = [
        threading.Thread(target=run, args=(archive, Source(audio(10))), kwargs={"stem": f"{STEM}-{number}"})
        for number in range(many)
    ]
    for one in copies:
        one.start()
    for one in copies:
        one.join()
    large = [copy_module.LARGE_BUFFER_BYTES] * copy_module.LARGE_BUFFERS
    assert sorted(sizes, reverse=True) == [*large, copy_module.BUFFER_BYTES, copy_module.BUFFER_BYTES]
    assert len(archive.keys()) == many
