"""Who spoke when, read from an archive, and written as RTTM that others can read."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.archive import manifest as manifests
from include.archive import speakers
from include.archive.stores import LocalStore
from tests.include.archive.test_manifest import entry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from include.archive.stores import Store

FOLDER = "dt=2026-03-04/recording=r1"
# NIST, Rich Transcription evaluation plans: ten fields; for SPEAKER, four of them are <NA> or free.
LINE = re.compile(r"SPEAKER (\S+) 1 (\d+\.\d{3}) (\d+\.\d{3}) <NA> <NA> (\S+) <NA> <NA>")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(root=str(tmp_path))


def spoke(who: Any, start: float | None, end: float | None) -> dict[str, Any]:
    return {
        "participant": who if who is None else {"id": who, "name": "Ada"},
        "start_timestamp": {"absolute": None, "relative": start},
        "end_timestamp": None if end is None else {"relative": end},
    }


def part(number: int, who: int, start: float, seconds: float) -> manifests.PartEntry:
    changed = {"participant_id": who, "start_relative_seconds": start, "duration_seconds": seconds}
    return manifests.PartEntry(**{**entry(number).__dict__, **changed})


def settled(
    store: Store, parts: Sequence[manifests.PartEntry] = (), timeline: object | None = None, name: str = "r1"
) -> manifests.Manifest:
    """An archived recording with a timeline of its own."""
    recording = manifests.RecordingFacts(id=name, created_at=datetime(2026, 3, 4, tzinfo=timezone.utc))
    manifest = manifests.Manifest.build(recording=recording, participants=[], parts=parts)
    if timeline is None:
        return manifest
    data = timeline if isinstance(timeline, bytes) else json.dumps(timeline).encode()
    store.put_if_absent(f"{FOLDER}/speaker_timeline.json", data, "application/json")
    document = manifests.document_entry("speaker_timeline", "speaker_timeline.json", data)
    return manifest.with_documents([document], [])


def told(speech: speakers.Speech) -> list[tuple[int, float, float]]:
    return [(one.participant_id, one.start, one.end) for one in speech.stretches]


def test_the_timeline_tells_who_spoke(store: Store) -> None:
    manifest = settled(store, [part(1, 7, 0.0, 60.0)], [spoke(8, 5.5, 7.25), spoke(7, 1.0, 5.0), spoke(None, 6, 8)])
    speech = speakers.speech(store, FOLDER, manifest)
    assert speech.source == "speaker_timeline"
    assert told(speech) == [(7, 1.0, 5.0), (8, 5.5, 7.25), (-1, 6.0, 8.0)]
    assert speech.seconds() == {7: 4.0, 8: 1.75, -1: 2.0}
    assert (speech.cut, speech.left_out) == (0, 0)


@pytest.mark.parametrize("who", [None, "?", True, 1.5, float("inf"), {"id": 1}, [], "1" * 400])
def test_who_is_no_number_is_nobody_known(store: Store, who: Any) -> None:
    speech = speakers.speech(store, FOLDER, settled(store, [], [{**spoke(1, 1, 2), "participant": {"id": who}}]))
    assert told(speech) == [(-1, 1.0, 2.0)]


def test_overlapping_and_touching_stretches_of_one_participant_are_one(store: Store) -> None:
    timeline = [spoke(1, 4, 6), spoke(1, 0, 2), spoke(1, 1, 3), spoke(2, 1, 9), spoke(1, 3, 3.5), spoke(1, 1.5, 1.6)]
    speech = speakers.speech(store, FOLDER, settled(store, [], timeline))
    assert told(speech) == [(1, 0.0, 3.5), (2, 1.0, 9.0), (1, 4.0, 6.0)]


def test_what_lies_before_the_recording_is_cut(store: Store) -> None:
    timeline = [spoke(1, -2.5, 1.0), spoke(2, -3, -1), spoke(3, 2, 2), spoke(4, 5, 4), spoke(5, None, 3), "odd", None]
    speech = speakers.speech(store, FOLDER, settled(store, [], timeline))
    assert told(speech) == [(1, 0.0, 1.0)]
    assert (speech.cut, speech.left_out) == (1, 6)


def test_an_open_stretch_lasts_to_the_end(store: Store) -> None:
    speech = speakers.speech(store, FOLDER, settled(store, [part(1, 1, 0.0, 90.0)], [spoke(1, 3, None)]))
    assert told(speech) == [(1, 3.0, 90.0)]


@pytest.mark.parametrize(
    "timeline",
    [None, [], b"no json", b"{}", [spoke(1, None, None)], [spoke("x", "y", 3)], b"[" * 100_000, [spoke(7, 1e400, 2)]],
    ids=["none", "empty", "page", "object", "no times", "odd times", "deep", "endless"],
)
def test_without_a_timeline_the_parts_tell(store: Store, timeline: object) -> None:
    manifest = settled(store, [part(1, 7, -1.0, 3.0), part(2, 8, 4.0, 1.5)], timeline)
    speech = speakers.speech(store, FOLDER, manifest)
    assert (speech.source, told(speech), speech.cut) == ("parts", [(7, 0.0, 2.0), (8, 4.0, 5.5)], 1)


def test_a_lost_timeline_is_no_timeline(store: Store, tmp_path: Path) -> None:
    manifest = settled(store, [part(1, 7, 0.0, 3.0)], [spoke(1, 0, 1)])
    (tmp_path / FOLDER / "speaker_timeline.json").unlink()
    assert speakers.speech(store, FOLDER, manifest).source == "parts"


def test_the_file_is_written_once_and_is_not_extra(store: Store, tmp_path: Path) -> None:
    manifest = settled(store, [], [spoke(1, 0.0004, 1)])
    manifests.publish(store, FOLDER, manifest)
    speakers.write(store, FOLDER, manifest)
    written = (tmp_path / FOLDER / "speakers.rttm").stat()
    speakers.write(store, FOLDER, manifest)
    assert (tmp_path / FOLDER / "speakers.rttm").stat() == written
    text = (tmp_path / FOLDER / "speakers.rttm").read_text("ascii")
    assert text == "SPEAKER r1 1 0.000 1.000 <NA> <NA> 1 <NA> <NA>\n"
    assert manifests.check(store, FOLDER, manifest) == []
    (tmp_path / FOLDER / "other.rttm").write_text("")
    assert [one.key for one in manifests.check(store, FOLDER, manifest)] == ["other.rttm"]


def test_it_follows_a_manifest_that_was_replaced(store: Store, tmp_path: Path) -> None:
    file = tmp_path / FOLDER / "speakers.rttm"
    manifests.publish(store, FOLDER, settled(store, [part(1, 7, 0.0, 3.0), part(2, 8, 1.0, 1.0)]))
    speakers.renew(store, FOLDER)
    assert [line.split()[7] for line in file.read_text().splitlines()] == ["7", "8"]
    (tmp_path / FOLDER / "manifest.json").unlink()
    manifests.publish(store, FOLDER, settled(store, [part(2, 8, 1.0, 1.0)]))
    speakers.renew(store, FOLDER)
    assert [line.split()[7] for line in file.read_text().splitlines()] == ["8"]
    (tmp_path / FOLDER / "manifest.json").unlink()
    manifests.publish(store, FOLDER, settled(store))
    speakers.renew(store, FOLDER)
    assert not file.exists()
    file.write_text("somebody else's")
    speakers.renew(store, FOLDER)
    assert file.read_text() == "somebody else's"


def test_nobody_spoke(store: Store, tmp_path: Path) -> None:
    speakers.write(store, FOLDER, settled(store, [], []))
    assert not (tmp_path / FOLDER / "speakers.rttm").exists()


seconds = st.floats(-1e6, 1e6) | st.integers(-100, 100)


@given(st.lists(st.tuples(st.integers(-1, 3), seconds, st.none() | seconds)), st.text(max_size=20))
def test_lines_are_of_nists_form_and_nobody_overlaps_himself(
    timeline: list[tuple[int, float, float | None]], name: str
) -> None:
    speech = speakers._speech("speaker_timeline", timeline, 1000.0)
    lines = speakers.to_rttm(name, speech.stretches).decode("ascii").splitlines()
    assert len(lines) == len(speech.stretches)
    ends: dict[str, float] = {}
    last = 0.0
    for line in lines:
        match = LINE.fullmatch(line)
        assert match is not None
        start, length = float(match[2]), float(match[3])
        assert start >= last
        assert length > 0
        assert start > ends.get(match[4], -1.0)
        last, ends[match[4]] = start, start + length
    assert len(speech.stretches) + speech.left_out <= len(timeline)


def test_a_public_parser_reads_it(store: Store, tmp_path: Path) -> None:
    """pyannote.database, which the diarization tools of pyannote read RTTM with."""
    util = pytest.importorskip("pyannote.database.util")  # needs Python 3.11
    timeline = [spoke(100, 0.6, 5.25), spoke(101, 7.2, 12.125), spoke(100, -1.0, 0.1), spoke(None, 8.0, 9.5)]
    manifest = settled(store, [], timeline, name="7c0e1b52-6c1d-4b77-8d52-3e2c9a6b4f10")
    speakers.write(store, FOLDER, manifest)
    (read,) = util.load_rttm(str(tmp_path / FOLDER / "speakers.rttm")).items()
    name, annotation = read
    assert name == "7c0e1b52-6c1d-4b77-8d52-3e2c9a6b4f10"
    found = [(label, round(turn.start, 3), round(turn.end, 3)) for turn, _, label in annotation.itertracks(True)]
    assert found == [("100", 0.0, 0.1), ("100", 0.6, 5.25), ("101", 7.2, 12.125), ("-1", 8.0, 9.5)]
