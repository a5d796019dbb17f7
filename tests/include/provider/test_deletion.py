"""Deleting at the source: only what is proven, whatever state the source and the archive are in."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import manifest as manifests
from include.errors import CodedError
from include.provider import deletion, transfer
from include.provider.deletion import AUDIO, RECORDING, delete_at_source, find, is_deleted, receipt_key
from tests.chaos import oracle
from tests.include.provider.test_transfer import Meeting, part

if TYPE_CHECKING:
    from pathlib import Path

    from include.simulator.process import RunningSimulator

EVER = {
    "created_after": datetime(2026, 1, 1, tzinfo=timezone.utc),
    "created_before": datetime(2030, 1, 1, tzinfo=timezone.utc),
}


@pytest.fixture
def root(simulator: RunningSimulator, tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def meeting(simulator: RunningSimulator, root: Path) -> Meeting:
    """A settled meeting of two people in two artifacts."""
    made = Meeting(
        simulator, root, {"parts": [part(1, 1), part(2, 2)]}, {"format": "ogg", "parts": [part(1, 3, size=5000)]}
    )
    made.run()
    return made


def delete(meeting: Meeting, scope: str = AUDIO) -> deletion.Deleted:
    return delete_at_source(meeting.ends, meeting.recording_id, meeting.folder, scope=scope, approved_by="ada")


def deletions(meeting: Meeting) -> list[tuple[str, int | None]]:
    """What the source was told to delete, and what it said."""
    journal = meeting.simulator.journal("api")
    return [(one["path"], one["status"]) for one in journal if one["method"] == "DELETE"]


def found(meeting: Meeting, **more: Any) -> deletion.Found:
    now = datetime.now(timezone.utc)
    return find(meeting.ends, **{**EVER, "settled_before": now + timedelta(minutes=1), **more})


def artifact_ids(meeting: Meeting) -> list[str]:
    return [artifact["id"] for artifact in meeting.ids["artifacts"]]


def refuses(meeting: Meeting, code: str, scope: str = AUDIO) -> None:
    before = deletions(meeting)
    with pytest.raises(CodedError) as caught:
        delete(meeting, scope)
    assert (caught.value.code, deletions(meeting)) == (code, before)
    assert not is_deleted(meeting.ends.store, meeting.recording_id)


def edit_manifest(meeting: Meeting, edit: Any) -> None:
    """Make the manifest one of other facts, as if the source had changed since."""
    path = meeting.path / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.unlink()
    path.write_text(json.dumps(document))


def test_every_artifact_is_deleted_and_the_receipt_says_so(meeting: Meeting, root: Path) -> None:
    deleted = delete(meeting)
    assert sorted(deletions(meeting)) == [
        (f"/api/v1/audio_separate/{one}/", 204) for one in sorted(artifact_ids(meeting))
    ]
    receipt = json.loads((root / receipt_key(meeting.recording_id)).read_text())
    assert receipt["artifacts"] == dict.fromkeys(artifact_ids(meeting), "deleted")
    assert (receipt["scope"], receipt["approved_by"], receipt["purpose"]) == (AUDIO, "ada", "retention")
    truth = meeting.simulator.control("GET", f"/truth/{meeting.recording_id}")
    bodies = {(artifact["id"], one["id"]) for artifact in truth["artifacts"] for one in artifact["parts"]}
    assert {(one["artifact_id"], one["part_id"]) for one in receipt["parts"]} == bodies
    assert oracle.whole(oracle.Folder(root), truth) == []
    assert deleted.parts == 3
    # Once more: nothing is asked for, the receipt stays.
    assert delete(meeting) == deleted
    assert len(deletions(meeting)) == 2
    assert meeting.ends.client.get_recording(meeting.recording_id).status == "done"


def test_the_whole_recording_only_where_it_is_asked_for(meeting: Meeting) -> None:
    assert delete(meeting, RECORDING).scope == RECORDING
    assert deletions(meeting) == [(f"/api/v1/recording/{meeting.recording_id}/", 204)]


@pytest.mark.parametrize("deleted", ["listed", "gone"])
@pytest.mark.parametrize("scope", [AUDIO, RECORDING])
def test_a_lost_answer_is_not_taken_for_a_failure(meeting: Meeting, scope: str, deleted: str) -> None:
    meeting.simulator.control("POST", "/settings", {"deleted": deleted})
    meeting.simulator.add_faults({"method": "DELETE", "action": {"drop": "after"}})
    with pytest.raises(CodedError) as caught:
        delete(meeting, scope)
    assert (caught.value.code, caught.value.permanent) == ("request_failed", False)
    assert len(deletions(meeting)) == 1  # sent once, and looked at before it is sent again
    assert not is_deleted(meeting.ends.store, meeting.recording_id)
    assert sorted(delete(meeting, scope).artifacts) == sorted(artifact_ids(meeting))


@pytest.mark.parametrize(
    ("status", "code"), [(409, "conflict"), (429, "rate_limited"), (500, "server_error"), (503, "server_error")]
)
def test_refusals_pass_and_are_proven_anew(meeting: Meeting, status: int, code: str) -> None:
    meeting.simulator.add_faults({"method": "DELETE", "times": 1, "action": {"status": status}})
    with pytest.raises(CodedError) as caught:
        delete(meeting)
    assert (caught.value.code, caught.value.permanent) == (code, False)
    next(meeting.path.rglob("*.wav")).unlink()  # damaged meanwhile
    refuses(meeting, "archive_damaged")


def test_a_refused_key_is_final(meeting: Meeting) -> None:
    meeting.simulator.add_faults({"method": "DELETE", "times": 1, "action": {"status": 401}})
    with pytest.raises(CodedError) as caught:
        delete(meeting)
    assert (caught.value.code, caught.value.permanent) == ("auth_rejected", True)


@pytest.mark.parametrize("which", ["participant=", "speaker_timeline.json"])
def test_flipped_bits_and_lost_objects(meeting: Meeting, which: str) -> None:
    victim = next(meeting.path / name for name in meeting.stored() if name.startswith(which))
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refuses(meeting, "archive_damaged")
    victim.write_bytes(good + b"\0")
    refuses(meeting, "archive_damaged")
    victim.unlink()
    refuses(meeting, "archive_damaged")
    victim.write_bytes(good)
    assert delete(meeting).parts == 3


def test_objects_that_nobody_listed_change_nothing(meeting: Meeting) -> None:
    (meeting.path / "stranger.txt").write_text("x")
    assert delete(meeting).parts == 3


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (lambda one: one.update(parts=one["parts"][1:]), "source_has_more"),
        (lambda one: one["parts"][0].update(participant_id=77), "source_has_more"),
        (lambda one: one["parts"][0].update(duration_seconds=1.5), "source_has_more"),
        (lambda one: one["parts"][0].update(source_bytes=3), "source_changed"),
        (lambda one: one["parts"].append({**one["parts"][0], "part_id": "further"}), "source_changed"),
        (lambda one: one["parts"][0].update(sha256="0" * 64), "archive_damaged"),
        (lambda one: one["recording"].update(id="another"), "not_settled"),
        (
            lambda one: one["missing"].append(
                {"artifact_id": "a", "part_id": None, "participant_id": None, "error_code": "media_failed"}
            ),
            "archived_with_gaps",
        ),
    ],
)
@pytest.mark.parametrize("scope", [AUDIO, RECORDING])
def test_what_differs_stays(meeting: Meeting, what: Any, code: str, scope: str) -> None:
    edit_manifest(meeting, what)
    refuses(meeting, code, scope)


def test_ids_that_were_issued_anew_are_matched_by_person_and_moment(meeting: Meeting) -> None:
    edit_manifest(meeting, lambda one: one["parts"][0].update(part_id="an-older-id"))
    assert delete(meeting).parts == 3


def test_without_a_manifest_nothing_is_deleted(meeting: Meeting) -> None:
    (meeting.path / "manifest.json").unlink()
    refuses(meeting, "not_settled")


@pytest.mark.parametrize("status", ["processing", "failed", "brand_new"])
def test_a_source_that_is_not_done(meeting: Meeting, status: str) -> None:
    artifacts = {"method": "GET", "path": r"^/api/v1/audio_separate/\?", "times": None}
    meeting.simulator.add_faults({**artifacts, "action": {"set": {"results.1.status.code": status}}})
    refuses(meeting, "source_not_ready")
    meeting.simulator.control("DELETE", "/faults")
    recordings = {"method": "GET", "path": "^/api/v1/recording/", "times": None}
    meeting.simulator.add_faults({**recordings, "action": {"set": {"status.code": status}}})
    refuses(meeting, "source_not_ready")


def test_an_artifact_that_is_no_longer_listed(meeting: Meeting) -> None:
    rule = {"method": "GET", "path": r"^/api/v1/audio_separate/\?", "times": None}
    meeting.simulator.add_faults({**rule, "action": {"remove": ["results.0"]}})
    refuses(meeting, "gone_unproven")


@pytest.mark.parametrize("deleted", ["listed", "gone"])
def test_what_somebody_else_deleted_gets_no_receipt(meeting: Meeting, deleted: str) -> None:
    meeting.simulator.control("POST", "/settings", {"deleted": deleted})
    meeting.ends.client.delete_audio_separate(artifact_ids(meeting)[0])
    refuses(meeting, "gone_unproven")
    meeting.ends.client.delete_recording(meeting.recording_id)
    refuses(meeting, "gone_unproven")


def test_a_proof_of_another_recording_proves_nothing(meeting: Meeting, root: Path) -> None:
    forged = root / deletion.RECEIPTS / meeting.recording_id / "proof-0.json"
    forged.parent.mkdir(parents=True)
    forged.write_text(json.dumps({"recording_id": "another", "artifact_ids": artifact_ids(meeting)}))
    (forged.parent / "proof-1.json").write_text("nonsense")
    meeting.ends.client.delete_audio_separate(artifact_ids(meeting)[0])
    refuses(meeting, "gone_unproven")


def test_a_receipt_that_cannot_be_read_is_left_alone(meeting: Meeting, root: Path) -> None:
    path = root / receipt_key(meeting.recording_id)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(CodedError) as caught:
        delete(meeting)
    assert caught.value.code == "receipt_unreadable"
    assert deletions(meeting) == []


def test_what_is_found(simulator: RunningSimulator, root: Path, meeting: Meeting) -> None:
    gaps = Meeting(simulator, root, {"status": "failed", "parts": []}, {"parts": [part(1, 9)]})
    gaps.run()
    fresh = Meeting(simulator, root, {"parts": [part(1, 8)]})
    seen = found(meeting)
    assert [(one.recording_id, one.artifacts, one.parts) for one in seen.candidates] == [(meeting.recording_id, 2, 3)]
    assert seen.left_out == {"archived with gaps": [gaps.recording_id], "not settled": [fresh.recording_id]}
    assert found(meeting, recording_id=meeting.recording_id).candidates == seen.candidates
    assert "settled too lately" in found(meeting, settled_before=datetime.now(timezone.utc) - timedelta(1)).left_out
    assert found(meeting, created_before=datetime(2026, 2, 1, tzinfo=timezone.utc)).candidates == []
    delete(meeting)
    again = found(meeting)
    assert again.candidates == []
    assert again.left_out["no audio left at the source"] == [meeting.recording_id]


def test_what_is_deleted_stays_settled(meeting: Meeting) -> None:
    settled = transfer.already_settled(meeting.ends.store, meeting.folder)
    delete(meeting)
    fetched = meeting.fetched()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == settled
    assert meeting.plan() == []  # nothing is left to plan with, and the sensor finds the manifest first
    assert meeting.fetched() == fetched


def test_nobody_spoke(simulator: RunningSimulator, root: Path) -> None:
    silent = Meeting(simulator, root, {"parts": []})
    assert silent.settle([]).outcome == "nothing_to_archive"
    assert delete(silent).parts == 0
    assert len(deletions(silent)) == 1


def test_the_manifest_is_never_touched(meeting: Meeting) -> None:
    before = (meeting.path / "manifest.json").read_bytes()
    delete(meeting)
    assert (meeting.path / "manifest.json").read_bytes() == before
    assert manifests.load(meeting.ends.store, meeting.folder) is not None
