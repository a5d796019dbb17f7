"""The page of a meeting: what it says, and how it gets beside its manifest and stays true to it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import manifest as manifests
from include.archive import meeting_page
from include.archive.errors import IntegrityError
from include.archive.manifest import Manifest, MissingPart, PartEntry, ParticipantFacts, RecordingFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.include.archive.support import Archive

FOLDER = "dt=2026-03-04/recording=rec-1"
PAGE = f"{FOLDER}/meeting.html"
START = datetime(2026, 3, 4, 9, 55, tzinfo=timezone.utc)
RECORDING = RecordingFacts(id="rec-1", created_at=START, title="Planning", platform="google_meet")


def part(who: int, at: float, seconds: float, **more: Any) -> PartEntry:
    number = more.pop("number", f"{who}-{at}")
    facts: dict[str, Any] = {
        "artifact_id": "a",
        "part_id": str(number),
        "participant_id": who,
        "start_relative_seconds": at,
        "start_absolute": None,
        "duration_seconds": seconds,
        "key": f"participant={who}/{more.get('artifact_id', 'a')}/{str(number).replace('.', '-')}.wav",
        "bytes": 1000,
        "sha256": "0" * 64,
        "media_type": "audio/wav",
        "source_format": "raw",
        "source_bytes": 1000,
        "source_sha256": "0" * 64,
        "verified_by": ["content-length"],
        "warnings": [],
    }
    return PartEntry(**{**facts, **more})


def meeting(*parts: PartEntry, **more: Any) -> Manifest:
    people = [ParticipantFacts(id=1, name="Ada"), ParticipantFacts(id=2, name="Grace"), ParticipantFacts(id=3)]
    facts: dict[str, Any] = {"recording": RECORDING, "participants": people, "parts": parts}
    return Manifest.build(**{**facts, **more})


def page_of(manifest: Manifest) -> str:
    return meeting_page.settled_page(FOLDER, manifest)


def lanes(page: str) -> dict[int, list[tuple[float, float]]]:
    """Return where each participant's bars begin and how wide they are, as shares of the timeline."""
    found = re.findall(r'<li data-who="(-?\d+)">.*?</li>', page, re.DOTALL)
    rows = re.findall(r'<li data-who="-?\d+">.*?</li>', page, re.DOTALL)
    bars = [re.findall(r'<rect x="([-\d.]+)%".*?width="([\d.]+)%"', row) for row in rows]
    return {int(who): [(float(x), float(w)) for x, w in row] for who, row in zip(found, bars, strict=True)}


def fact(page: str, name: str) -> str:
    found = re.search(f"<dt>{name}</dt><dd>(.*?)</dd>", page)
    assert found is not None
    return found[1]


# -- what it says ----------------------------------------------------------------------------------------------------


def test_every_part_is_at_its_true_place() -> None:
    page = page_of(meeting(part(1, -10, 15), part(1, 40, 20), part(2, 50, 40)))
    assert 'data-begin="-10.000" data-end="90.000"' in page
    assert lanes(page) == {1: [(0, 15), (50, 20)], 2: [(60, 40)]}
    assert "There without audio: <bdi>Participant 3</bdi>" in page


def test_silence_and_talk_time_add_up() -> None:
    page = page_of(meeting(part(1, 0, 30), part(1, 20, 20), part(2, 30, 20), part(2, 100, 20)))
    assert (fact(page, "Length"), fact(page, "Talk time"), fact(page, "Silence")) == ("2:00", "1:20", "0:50")
    assert re.findall(r"class=talk>([\d:]+) <span class=share>(.*?)<", page) == [("0:40", "50%"), ("0:40", "50%")]


def test_the_timeline_is_as_long_as_the_recording() -> None:
    recording = replace(RECORDING, started_at=START, completed_at=START + timedelta(seconds=120))
    assert 'data-end="120.000"' in page_of(meeting(part(1, 0, 60), recording=recording))
    odd = replace(recording, completed_at=START + timedelta(days=400))
    assert 'data-end="60.000"' in page_of(meeting(part(1, 0, 60), recording=odd))


def test_audio_that_comes_in_two_formats_counts_and_sounds_once() -> None:
    mp3 = {"artifact_id": "0", "media_type": "audio/mpeg"}
    page = page_of(meeting(part(1, 0, 30), part(1, 0.2, 29.9, **mp3), part(1, 60, 10, **mp3), part(2, 0, 30)))
    assert fact(page, "Talk time") == "1:10"
    assert re.findall(r'data-at="([\d.]+)"[^>]* data-twin', page) == ["0.200000"]
    assert page.count("the same audio as above in another format") == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_odd_numbers_have_no_place(odd: float) -> None:
    page = page_of(meeting(part(1, odd, 5, number="x"), part(2, 0, odd, number="y"), part(3, 0, 10)))
    assert lanes(page) == {3: [(0, 100)]}
    assert page.count("data-at=") == 1
    assert page.count(">Download<") == 3


def test_what_is_missing_and_why() -> None:
    lost = MissingPart(
        artifact_id="a2", part_id=None, participant_id=None, error_code="media_failed", message="artifact a2 is failed"
    )
    page = page_of(meeting(part(1, 0, 5), missing=[lost]))
    assert "Recall could not make this audio. <code>media_failed</code>" in page
    assert "artifact a2 is failed" in page
    assert "Everybody’s audio" in page
    assert "Nothing. Every part that Recall listed is stored and verified." in page_of(meeting(part(1, 0, 5)))
    assert "nobody spoke" in page_of(meeting(outcome_reason="nobody spoke"))


def test_a_huge_meeting_stays_a_page() -> None:
    parts = [part(number % 40, number * 0.5, 0.4, number=number) for number in range(20_000)]
    page = page_of(meeting(*parts, participants=[]))
    assert page.count("data-at=") == meeting_page.MOST_ROWS
    assert "18,000 more parts are listed in the manifest alone" in page
    # What is left out is left out at the end, so that what is played has no holes.
    assert max(float(at) for at in re.findall('data-at="(.*?)"', page)) == 999.5
    assert len(page) < 2_500_000
    assert {len(bars) for bars in lanes(page).values()} <= set(range(1, 1501))


def test_the_same_manifest_gives_the_same_page() -> None:
    manifest = meeting(part(1, 0, 5), part(2, 3, 4))
    assert page_of(Manifest.from_bytes(manifest.to_bytes())) == page_of(manifest)


# -- beside the manifest ---------------------------------------------------------------------------------------------


def test_it_is_written_once(archive: Archive) -> None:
    manifest = meeting(part(1, 0, 5))
    manifests.publish(archive.store, FOLDER, manifest)
    meeting_page.write(archive.store, FOLDER, manifest)
    assert archive.get(PAGE).decode() == page_of(manifest)
    written = archive.modified(PAGE)
    # Who comes second has seen another manifest, as before a purge; the one that is stored counts.
    for late in (manifest, meeting(part(1, 0, 7))):
        meeting_page.write(archive.store, FOLDER, late)
        assert archive.modified(PAGE) == written
    assert archive.leftovers() == []


def test_no_check_takes_it_for_something_extra(archive: Archive) -> None:
    manifest = meeting()
    manifests.publish(archive.store, FOLDER, manifest)
    meeting_page.write(archive.store, FOLDER, manifest)
    assert manifests.check(archive.store, FOLDER, manifest, deep=True) == []


def test_it_follows_a_manifest_that_was_replaced(archive: Archive) -> None:
    first, second = meeting(part(1, 0, 5)), meeting(participants=[])
    manifests.publish(archive.store, FOLDER, first)
    meeting_page.write(archive.store, FOLDER, first)
    meeting_page.renew(archive.store, FOLDER)
    assert archive.get(PAGE).decode() == page_of(first)
    archive.remove(f"{FOLDER}/manifest.json")
    manifests.publish(archive.store, FOLDER, second)
    meeting_page.write(archive.store, FOLDER, second)
    assert archive.get(PAGE).decode() == page_of(second)
    assert b"Ada" not in archive.get(PAGE)
    archive.remove(PAGE)
    meeting_page.renew(archive.store, FOLDER)
    assert archive.get(PAGE).decode() == page_of(second)
    assert archive.leftovers() == []


def test_a_page_of_somebody_else_stays(archive: Archive) -> None:
    manifests.publish(archive.store, FOLDER, meeting())
    assert archive.store.put_if_absent(PAGE, b"<p>mine", "text/html")
    meeting_page.renew(archive.store, FOLDER)
    assert archive.get(PAGE) == b"<p>mine"


def test_a_rotten_page_makes_room(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody could be purged from its meeting."""
    manifests.publish(archive.store, FOLDER, meeting())
    assert archive.store.put_if_absent(PAGE, b"Ada, and bits that flipped", "text/html")
    read = archive.store.read

    def rotten(key: str, start: int = 0) -> Iterator[bytes]:
        yield from read(key, start)
        if key == PAGE:
            raise IntegrityError("the bytes do not match the store's own checksum")

    monkeypatch.setattr(archive.store, "read", rotten)
    meeting_page.renew(archive.store, FOLDER)
    assert archive.get(PAGE).decode() == page_of(meeting())


def test_who_is_slow_does_not_bring_back_what_was_removed(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another purge replaces the manifest, and the page, while this one is about to write an older page."""
    first, second = meeting(), meeting(participants=[])
    manifests.publish(archive.store, FOLDER, first)
    put, met = archive.store.put_if_absent, []

    def overtaken(key: str, *rest: Any) -> bool:
        if key == PAGE and not met:
            met.append(key)
            archive.remove(f"{FOLDER}/manifest.json")
            manifests.publish(archive.store, FOLDER, second)
        return put(key, *rest)

    monkeypatch.setattr(archive.store, "put_if_absent", overtaken)
    meeting_page.renew(archive.store, FOLDER)
    assert met
    assert archive.get(PAGE).decode() == page_of(second)
