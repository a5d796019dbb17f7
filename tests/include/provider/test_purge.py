"""Removing a person: found by what people know, gone for good, whoever runs what afterwards."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import manifest as manifests
from include.archive import verify
from include.archive.errors import ManifestConflictError, StorageUnavailableError
from include.archive.stores.local import LocalStore
from include.errors import CodedError
from include.provider import purge as purging
from include.provider import transfer
from include.provider.deletion import AUDIO, delete_at_source
from include.provider.errors import BadParamsError
from include.provider.purge import Request, find, is_receipt_of, purge, purge_at_source, write_receipt
from include.provider.removal_operators import days, request_of
from tests.include.provider.test_transfer import Meeting

if TYPE_CHECKING:
    from pathlib import Path

    from include.simulator.process import RunningSimulator

DOCUMENTS = ["participant_events", "participants", "speaker_timeline"]
ADA, GRACE = "Ada Example", "Grace Example"
EMAIL = "ada@example.com"


def part(number: int, name: str, seed: int, email: str | None = None) -> dict[str, Any]:
    return {
        "participant": {"id": number, "name": name, "email": email},
        "audio": {"seed": seed, "bytes": 3200},
        "relative": float(seed),
    }


@pytest.fixture
def root(simulator: RunningSimulator, tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def meeting(simulator: RunningSimulator, root: Path) -> Meeting:
    """Ada (who left and came back) and Grace."""
    made = Meeting(
        simulator,
        root,
        {"parts": [part(1, ADA, 1, EMAIL), part(2, GRACE, 2), part(3, ADA, 3, EMAIL.upper())]},
        {"format": "ogg", "parts": [part(1, ADA, 4, EMAIL)]},
    )
    made.run()
    return made


def everywhere(root: Path) -> str:
    """All that is readable in the archive, names of files included."""
    return "\n".join(f"{one} {one.read_bytes()!r}" for one in [*root.rglob("*.json"), *root.rglob("*.html")])


def ids(meeting: Meeting, request: Request) -> list[int]:
    matches, _ = find(meeting.ends.store, request, None, None)
    return [one for match in matches for one in match.participant_ids if match.recording_id == meeting.recording_id]


def remove(meeting: Meeting, *whom: int) -> int:
    return purge(meeting.ends.store, meeting.recording_id, meeting.folder, whom)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(email=EMAIL), [1, 3]),
        (Request(email=" Ada@Example.COM"), [1, 3]),
        (Request(email="example.com"), []),
        (Request(name=ADA), [1, 3]),
        (Request(name="Ada"), []),
        (Request(name=GRACE), [2]),
    ],
)
def test_who_is_meant(meeting: Meeting, request_: Request, expected: list[int]) -> None:
    assert ids(meeting, request_) == expected


def test_one_participant_of_one_recording(simulator: RunningSimulator, root: Path, meeting: Meeting) -> None:
    other = Meeting(simulator, root, {"parts": [part(1, ADA, 9)]})
    other.run()
    request = Request(recording_id=meeting.recording_id, participant_id=1)
    (match,) = find(meeting.ends.store, request, None, None)[0]
    assert (match.recording_id, match.participant_ids, match.parts) == (meeting.recording_id, [1], 2)
    assert find(meeting.ends.store, Request(recording_id="unknown", participant_id=1), None, None) == ([], [])


def test_days_and_what_is_not_settled(simulator: RunningSimulator, root: Path, meeting: Meeting) -> None:
    store, request = meeting.ends.store, Request(email=EMAIL)
    (root / "dt=2026-03-05/recording=unsettled/participant=1").mkdir(parents=True)
    assert find(store, request, None, None)[1] == ["dt=2026-03-05/recording=unsettled"]
    assert len(find(store, request, *days("2026-03-04", "2026-03-04"))[0]) == 1
    assert find(store, request, *days("2026-03-05", ""))[0] == []
    assert find(store, request, *days("", "2026-03-03"))[0] == []


def test_a_person_is_gone_and_the_others_stay(meeting: Meeting, root: Path) -> None:
    before = manifests.load(meeting.ends.store, meeting.folder)
    (meeting.path / "derived").mkdir()
    (meeting.path / "derived" / "aligned.flac").write_bytes(b"everyone's voice")
    assert remove(meeting, 1, 3) == 3 + 4
    after = manifests.load(meeting.ends.store, meeting.folder)
    assert before is not None
    assert after is not None
    assert after.parts == tuple(one for one in before.parts if one.participant_id == 2)
    assert {(one.artifact_id, one.part_id) for one in after.missing} == {
        (one.artifact_id, one.part_id) for one in before.parts if one.participant_id != 2
    }
    assert {one.error_code for one in after.missing} == {"purged"}
    assert after.purged == {1, 3}
    assert manifests.check(meeting.ends.store, meeting.folder, after, deep=True) == []
    place = meeting.folder
    report = list(verify.look_through(meeting.ends.store, first=place, last=place, unsettled_before=0))
    assert [one.findings for one in report] == [[]]
    assert ADA not in everywhere(root)
    assert "ada@" not in everywhere(root).lower()
    assert GRACE in everywhere(root)
    assert [name for name in meeting.stored() if "participant=1/" in name or "participant=3/" in name] == []
    left = [name for name in meeting.stored() if "participant" not in name]
    assert left == ["manifest.json", "meeting.html", "speakers.rttm"]
    assert {line.split()[7] for line in (meeting.path / "speakers.rttm").read_text().splitlines()} == {"2"}
    assert {one.name: one.error_code for one in after.documents_missing} == dict.fromkeys(DOCUMENTS, "purged")
    assert remove(meeting, 1, 3) == 0
    assert ids(meeting, Request(email=EMAIL)) == []
    assert ids(meeting, Request(recording_id=meeting.recording_id, participant_id=1)) == [1]


def test_the_page_forgets_before_the_manifest_does(
    meeting: Meeting, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the manifest names nobody any more, no search finds the page that still would."""

    def killed(*_: Any, **__: Any) -> bool:
        raise StorageUnavailableError("killed")

    monkeypatch.setattr(manifests, "write", killed)
    with pytest.raises(StorageUnavailableError):
        remove(meeting, 1, 3)
    assert ADA not in (meeting.path / "meeting.html").read_text("utf-8")
    assert ids(meeting, Request(name=ADA)) == [1, 3]


def test_what_a_slow_writer_put_on_the_page_goes(meeting: Meeting, root: Path) -> None:
    page = meeting.path / "meeting.html"
    before = page.read_bytes()
    remove(meeting, 1, 3)
    after = page.read_bytes()
    page.write_bytes(before)
    assert remove(meeting, 1, 3) == 0
    assert page.read_bytes() == after


def test_titles_and_metadata_that_name_the_person(simulator: RunningSimulator, root: Path) -> None:
    created = datetime(2026, 3, 4, tzinfo=timezone.utc)
    manifest = manifests.Manifest.build(
        recording=manifests.RecordingFacts(
            id="r", created_at=created, title="1:1 with ada example", metadata={"host": EMAIL, "org": "acme"}
        ),
        participants=[manifests.ParticipantFacts(id=1, name=ADA, email=EMAIL, is_host=True, platform="desktop")],
        parts=[],
    )
    after = purging.without(manifest, {1})
    assert after.recording.title is None
    assert after.recording.metadata == {"host": None, "org": "acme"}
    assert after.participants == (manifests.ParticipantFacts(id=1),)
    assert after.outcome == "nothing_to_archive"


def test_nothing_brings_it_back(meeting: Meeting, root: Path) -> None:
    remove(meeting, 1, 3)
    manifest, stored, fetched = (meeting.path / "manifest.json").read_bytes(), meeting.stored(), meeting.fetched()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) is not None
    # Not even where an object of somebody else is lost, so that all has to be looked at again.
    victim = next(one for one in meeting.path.rglob("*.wav"))
    content = victim.read_bytes()
    victim.unlink()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) is None
    receipts = [receipt for batch in meeting.plan() for receipt in meeting.archive(batch)]
    settled = meeting.settle(receipts)
    assert settled.outcome == "archived_with_gaps"
    assert victim.read_bytes() == content
    assert (meeting.path / "manifest.json").read_bytes() == manifest
    assert meeting.stored() == stored
    assert len(meeting.fetched()) == len(fetched) + 1
    assert ADA not in everywhere(root)


def test_nothing_brings_it_back_even_without_a_manifest(meeting: Meeting, root: Path) -> None:
    remove(meeting, 1, 3)
    manifest, stored = (meeting.path / "manifest.json").read_text(), meeting.stored()
    (meeting.path / "manifest.json").unlink()
    assert [batch.participant_ids for batch in meeting.plan()] == [[2]]
    meeting.run()
    assert meeting.stored() == stored
    anew = json.loads((meeting.path / "manifest.json").read_text())
    assert anew["missing"] == json.loads(manifest)["missing"]
    assert ADA not in everywhere(root)


def test_a_note_that_cannot_be_read_stops_everything(meeting: Meeting, root: Path) -> None:
    remove(meeting, 1)
    (note,) = (root / purging.RECEIPTS / "recordings" / meeting.recording_id).iterdir()
    note.write_text("?")
    for step in (meeting.plan, lambda: meeting.settle([])):
        with pytest.raises(CodedError) as caught:
            step()
        assert caught.value.code == "manifest_invalid"


class Interrupted(LocalStore):
    """Fail at the n-th removal, as a killed try does."""

    left = 0

    def delete(self, info: Any) -> None:
        if not self.left:
            raise StorageUnavailableError("killed")
        self.left -= 1
        super().delete(info)


def test_a_person_who_never_spoke(simulator: RunningSimulator, root: Path) -> None:
    people = [{"id": 1, "name": ADA, "email": EMAIL}, {"id": 2, "name": GRACE}]
    meeting = Meeting(simulator, root, {"parts": [part(2, GRACE, 2)]}, participants=people)
    meeting.run()
    assert ADA in (meeting.path / "participants.json").read_text()
    store = Interrupted(root=root)
    store.left = 1
    with pytest.raises(StorageUnavailableError):
        purge(store, meeting.recording_id, meeting.folder, [1])
    assert ids(meeting, Request(email="somebody@example.com")) == [1]
    assert remove(meeting, 1) == 2
    assert ids(meeting, Request(email="somebody@example.com")) == []
    assert ADA not in everywhere(root)
    assert meeting.run().parts == 1
    assert ADA not in everywhere(root)


def test_who_has_no_name_is_not_taken_for_purged(simulator: RunningSimulator, root: Path) -> None:
    people = [{"id": 1, "name": ADA, "email": EMAIL}, {"id": 2, "name": None}]
    anonymous = {"participant": {"id": 2, "name": None}, "audio": {"seed": 2, "bytes": 3200}, "relative": 2.0}
    meeting = Meeting(simulator, root, {"parts": [anonymous]}, participants=people)
    meeting.run()
    with pytest.raises(StorageUnavailableError):
        purge(Interrupted(root=root), meeting.recording_id, meeting.folder, [1])
    assert ids(meeting, Request(email="somebody@example.com")) == [1]


def test_where_nobody_is_left_nobody_spoke(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, ADA, 1)]})
    meeting.run()
    assert (meeting.path / "speakers.rttm").is_file()
    remove(meeting, 1)
    assert meeting.stored() == ["manifest.json", "meeting.html"]


@pytest.mark.parametrize("left", [0, 1, 3, 4, 5])
def test_half_done_is_found_and_finished(meeting: Meeting, root: Path, left: int) -> None:
    store = Interrupted(root=root)
    store.left = left
    with pytest.raises(StorageUnavailableError):
        purge(store, meeting.recording_id, meeting.folder, [1, 3])
    # The archive says the truth, and nothing fetches what is gone.
    manifest = manifests.load(meeting.ends.store, meeting.folder)
    assert manifest is not None
    assert {one.kind for one in manifests.check(meeting.ends.store, meeting.folder, manifest)} <= {"extra"}
    assert transfer.already_settled(meeting.ends.store, meeting.folder) is not None
    assert ids(meeting, Request(email="somebody@example.com")) == ([1, 3] if left < 5 else [3])
    assert remove(meeting, 1, 3) == 6 - left
    assert ids(meeting, Request(email="somebody@example.com")) == []


def test_somebody_else_replaces_the_manifest(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    load = manifests.load
    path = meeting.path / "manifest.json"

    def slow(store: Any, folder: str) -> Any:
        manifest = load(store, folder)
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        return manifest

    before = path.read_bytes()
    monkeypatch.setattr(manifests, "load", slow)
    with pytest.raises(ManifestConflictError):
        remove(meeting, 1)
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert remove(meeting, 1) == 2 + 3


def test_at_the_source_as_a_whole_and_after_proof(meeting: Meeting) -> None:
    ends, folder = meeting.ends, meeting.folder
    remove(meeting, 1, 3)
    victim = next(one for one in meeting.path.rglob("*.wav"))
    content = victim.read_bytes()
    victim.unlink()
    with pytest.raises(CodedError) as caught:
        purge_at_source(ends, meeting.recording_id, folder, approved_by="ada")
    assert caught.value.code == "archive_damaged"
    assert not any(one["method"] == "DELETE" for one in meeting.simulator.journal("api"))
    victim.write_bytes(content)
    gone = purge_at_source(ends, meeting.recording_id, folder, approved_by="ada")
    assert sorted(gone) == sorted(one["id"] for one in meeting.ids["artifacts"])
    assert all(one.status == "deleted" for one in ends.client.list_audio_separate(meeting.recording_id))
    assert purge_at_source(ends, meeting.recording_id, folder, approved_by="ada") == []


def test_retention_deletes_what_was_purged_too(meeting: Meeting) -> None:
    remove(meeting, 1, 3)
    deleted = delete_at_source(meeting.ends, meeting.recording_id, meeting.folder, scope=AUDIO, approved_by=None)
    assert (len(deleted.artifacts), deleted.parts) == (2, 1)


def test_the_receipt_shows_what_was_done_and_not_to_whom(meeting: Meeting, root: Path) -> None:
    store, request = meeting.ends.store, Request(email=EMAIL)
    purged = [{"recording_id": meeting.recording_id, "participant_ids": [1, 3], "objects": 3, "at_source": []}]
    uri = write_receipt(store, request, purged, run_id="manual__1", approved_by="admin")
    assert write_receipt(store, request, purged, run_id="manual__1", approved_by="admin") == uri
    (path,) = (root / purging.RECEIPTS).glob("*.json")
    receipt = json.loads(path.read_text())
    assert receipt["recordings"] == purged
    assert receipt["totals"] == {"recordings": 1, "objects": 3}
    assert is_receipt_of(receipt, request)
    assert not is_receipt_of(receipt, Request(email="grace@example.com"))
    assert "ada@" not in path.read_text()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"email": ""},
        {"email": EMAIL, "name": ADA},
        {"recording_id": "r"},
        {"participant_id": 1},
        {"email": EMAIL, "participant_id": 1},
        {"recording_id": "r", "participant_id": 1, "name": ADA},
    ],
)
def test_params_that_mean_nothing(params: dict[str, Any]) -> None:
    with pytest.raises(BadParamsError):
        request_of(params)


def test_days_that_are_none() -> None:
    for first, last in (("2026-02-30", ""), ("", "soon"), ("2026-03-05", "2026-03-04")):
        with pytest.raises(BadParamsError):
            days(first, last)
    assert days("", "") == (None, None)
    assert request_of({"recording_id": "r", "participant_id": 0}) == Request(recording_id="r", participant_id=0)
