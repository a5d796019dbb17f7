"""What the source lists about a recording, stored beside its audio."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import manifest as manifests
from include.archive import verify
from include.archive.copy import Stop
from include.archive.errors import StorageDeniedError, StorageError, StorageUnavailableError
from include.archive.stores import LocalStore
from include.errors import CodedError
from include.provider import operators, transfer
from include.provider.repair import Repairer
from include.provider.transfer import Ends
from tests.include.provider.conftest import Context
from tests.include.provider.test_transfer import Meeting, part, person

if TYPE_CHECKING:
    from pathlib import Path

    from include.simulator.process import RunningSimulator

LATER = time.time() + 3600
DOCUMENTS = ["participant_events", "participants", "speaker_timeline"]


@pytest.fixture
def root(simulator: RunningSimulator, tmp_path: Path) -> Path:
    return tmp_path / "archive"


def manifest_of(meeting: Meeting) -> manifests.Manifest:
    manifest = manifests.load(meeting.ends.store, meeting.folder)
    assert manifest is not None
    return manifest


def calls(meeting: Meeting) -> list[str]:
    return [one["path"] for one in meeting.simulator.journal("api") if "/download/" not in one["path"]]


def downloads(meeting: Meeting) -> list[str]:
    paths = [one["path"] for one in meeting.simulator.journal("api") if "/download/" in one["path"]]
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def body(kind: str, data: bytes) -> dict[str, Any]:
    return {
        "origin": "api",
        "path": f"/download/{kind}",
        "times": None,
        "action": {"status": 200, "body_hex": data.hex()},
    }


def test_lists_are_stored_listed_and_proven(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]}, participants=[person(1, "Ada"), person(2, "Mute")])
    receipts = [receipt for batch in meeting.plan() for receipt in meeting.archive(batch)]
    simulator.control("DELETE", "/journal")
    meeting.settle(receipts)
    assert len(calls(meeting)) == 2  # the bot and the list of artifacts, as without the documents
    assert downloads(meeting) == ["audio_separate", *DOCUMENTS]
    manifest = manifest_of(meeting)
    assert [one.name for one in manifest.documents] == DOCUMENTS
    assert manifest.documents_missing == ()
    for one in manifest.documents:
        data = (meeting.path / one.key).read_bytes()
        assert (one.bytes, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [one["name"] for one in json.loads((meeting.path / "participants.json").read_bytes())] == ["Ada", "Mute"]
    assert [one.name for one in manifest.participants] == ["Ada", "Mute"]
    assert manifests.check(meeting.ends.store, meeting.folder, manifest, deep=True) == []

    (meeting.path / "participants.json").write_bytes(b"[]")
    (meeting.path / "speaker_timeline.json").unlink()
    problems = manifests.check(meeting.ends.store, meeting.folder, manifest)
    assert [(one.kind, one.key) for one in problems] == [
        ("size", "participants.json"),
        ("missing", "speaker_timeline.json"),
    ]


def test_bytes_are_kept_as_they_came(simulator: RunningSimulator, root: Path) -> None:
    sent = b' [ {"id": 1, "name": "\\u0041da", "new": 1.50, "email": null} ,\r\n {"id":-7}]\n'
    simulator.add_faults(body("participants", sent))
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    assert (meeting.path / "participants.json").read_bytes() == sent
    assert [(one.id, one.name) for one in manifest_of(meeting).participants] == [(-7, None), (1, "Ada")]


def test_no_signed_link_is_kept(simulator: RunningSimulator, root: Path) -> None:
    sent = [
        {"id": 1, "name": "Ada", "extra_data": {"photo": "https://b.s3.amazonaws.com/x?Expires=1&Signature=CANARY%3D"}},
        {"id": 2, "name": 'see "https://r.example/api/v1/download/x?token=CANARY" and https://v.example/?v=1&t=2'},
    ]
    escaped = json.dumps(sent).replace("/", "\\/").replace("&", "\\u0026")
    simulator.add_faults(body("participants", json.dumps(sent).encode()), body("participant_events", escaped.encode()))
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    for name in ("participants.json", "participant_events.json"):
        kept = json.loads((meeting.path / name).read_bytes())
        assert kept[0]["extra_data"]["photo"] == "https://b.s3.amazonaws.com/x?[hidden]"
        assert kept[1]["name"] == ('see "https://r.example/api/v1/download/x?[hidden]" and https://v.example/?v=1&t=2')
    assert not [one for one in root.rglob("*") if one.is_file() and b"CANARY" in one.read_bytes()]
    (meeting.path / "participants.json").unlink()
    assert repair(meeting) == {"participants.json": ("restored", None)}
    assert found(meeting) == []


def test_a_second_run_stores_nothing_and_asks_for_nothing(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    first = meeting.run()
    before = {name: (meeting.path / name).stat().st_mtime_ns for name in meeting.stored()}
    simulator.control("DELETE", "/journal")
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == first
    assert simulator.journal() == []
    assert meeting.run() == first  # even one that settles anew
    assert {name: (meeting.path / name).stat().st_mtime_ns for name in meeting.stored()} == before


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"action": {"status": 404}}, "link_expired"),
        ({"action": {"status": 200, "body": "<html>"}}, "bad_response"),
        ({"action": {"status": 200, "body": '{"detail": "no list"}'}}, "schema_changed"),
        ({"action": {"status": 200, "body_hex": (b"[" + b" " * (16 * 2**20) + b"]").hex()}}, "parts_too_large"),
    ],
    ids=["gone", "page", "no list", "huge"],
)
def test_a_list_that_cannot_be_had_costs_nothing_else(
    simulator: RunningSimulator, root: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], code: str
) -> None:
    monkeypatch.setattr("include.recall.retry.time.sleep", lambda seconds: None)
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    object.__setattr__(meeting.ends.media._retry, "base", 0.01)
    simulator.add_faults({"origin": "api", "path": "/download/speaker_timeline", "times": None, **fault})
    assert meeting.run().outcome == "archived"
    manifest = manifest_of(meeting)
    assert [one.name for one in manifest.documents] == DOCUMENTS[:2]
    assert [(one.name, one.error_code) for one in manifest.documents_missing] == [("speaker_timeline", code)]
    assert "speaker_timeline.json" not in meeting.stored()
    assert (meeting.path / "speakers.rttm").exists()  # from the parts


def test_a_source_that_offers_none(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]}, overrides={"media_shortcuts": {}})
    assert meeting.run().outcome == "archived"
    missing = manifest_of(meeting).documents_missing
    assert [(one.name, one.error_code) for one in missing] == [(name, "not_offered") for name in DOCUMENTS]


def test_lists_alone_never_make_a_settled_recording_unsettled(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    settled = meeting.run()
    lost = (meeting.path / "participants.json").read_bytes()
    (meeting.path / "participants.json").unlink()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == settled
    meeting.run()  # one that settles anew puts back what the manifest lists
    assert (meeting.path / "participants.json").read_bytes() == lost
    (meeting.path / "participants.json").unlink()
    simulator.add_faults(body("participants", b"[]"))
    meeting.run()  # and nothing else
    assert not (meeting.path / "participants.json").exists()


def test_an_earlier_try_left_other_bytes(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.path.mkdir(parents=True)
    (meeting.path / "participant_events.json").write_bytes(b"[]")
    meeting.run()
    manifest = manifest_of(meeting)
    assert (meeting.path / "participant_events.json").read_bytes() == b"[]"
    assert manifests.check(meeting.ends.store, meeting.folder, manifest, deep=True) == []


class Choosy(LocalStore):
    """A store that refuses one list."""

    error: StorageError = StorageDeniedError("not this one")

    def put_if_absent(self, key: str, *rest: Any) -> bool:
        if key.endswith("speaker_timeline.json"):
            raise self.error
        return super().put_if_absent(key, *rest)


def test_a_store_that_refuses_one_list(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    receipts = [receipt for batch in meeting.plan() for receipt in meeting.archive(batch)]
    store = Choosy(root=str(root))
    meeting.ends = Ends(client=meeting.ends.client, media=meeting.ends.media, store=store)
    store.error = StorageUnavailableError("busy")
    with pytest.raises(CodedError):
        meeting.settle(receipts)  # a later try has better chances
    store.error = StorageDeniedError("not this one")
    assert meeting.settle(receipts).outcome == "archived"
    manifest = manifest_of(meeting)
    assert [one.name for one in manifest.documents] == DOCUMENTS[:2]
    assert [(one.name, one.error_code) for one in manifest.documents_missing] == [
        ("speaker_timeline", "storage_denied")
    ]


def test_who_spoke_when_is_written_by_the_next_run_or_verification(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    path = meeting.path / "speakers.rttm"
    written = path.read_bytes()
    path.unlink()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) is not None
    assert path.read_bytes() == written
    path.unlink()
    assert found(meeting) == []
    assert repair(meeting) == {}
    assert path.read_bytes() == written


def test_what_a_killed_writer_left_is_removed(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    for name in (*(f"{one}.json" for one in DOCUMENTS), "speakers.rttm"):
        (meeting.path / f".tmp-{name}.0123456789abcdef").write_bytes(b"[")
    assert transfer.already_settled(meeting.ends.store, meeting.folder) is not None
    assert not [name for name in meeting.stored() if name.startswith(".")]


def test_nothing_is_stored_of_a_recording_that_is_owed(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    with pytest.raises(CodedError):
        meeting.settle([])
    assert meeting.stored() == []


def found(meeting: Meeting) -> list[tuple[str, str]]:
    (checked,) = verify.look_through(meeting.ends.store, first="", last="dt=9999", unsettled_before=LATER)
    return [(one.kind, one.key.rpartition("/")[2]) for one in checked.findings]


def repair(meeting: Meeting) -> dict[str, tuple[str | None, str | None]]:
    (checked,) = verify.look_through(meeting.ends.store, first="", last="dt=9999", unsettled_before=LATER)
    outcomes = Repairer(lambda: meeting.ends, stop=Stop()).repair(checked)
    return {one.key.rpartition("/")[2]: (outcome.action, outcome.code) for one, outcome in outcomes}


def test_verifying_proves_and_repairs_them(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    (meeting.path / "derived").mkdir()
    (meeting.path / "derived" / "aligned.json").write_text("{}")
    assert found(meeting) == []
    before = {name: (meeting.path / name).read_bytes() for name in meeting.stored()}
    (meeting.path / "participants.json").unlink()
    data = bytearray(before["participant_events.json"])
    data[50] ^= 1
    with (meeting.path / "participant_events.json").open("r+b") as file:
        file.write(data)
    assert found(meeting) == [("damaged", "participant_events.json"), ("missing", "participants.json")]
    assert repair(meeting) == {
        "participant_events.json": ("replaced", None),
        "participants.json": ("restored", None),
    }
    assert found(meeting) == []
    assert {name: (meeting.path / name).read_bytes() for name in meeting.stored()} == before

    (meeting.path / "participants.json").unlink()
    simulator.add_faults(body("participants", b"[]"))
    assert repair(meeting) == {"participants.json": (None, "content_conflict")}
    assert found(meeting) == [("missing", "participants.json")]


def test_a_rebuilt_manifest_lists_them_again(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    before = {name: (meeting.path / name).read_bytes() for name in meeting.stored()}
    (meeting.path / "manifest.json").unlink()
    simulator.add_faults(body("speaker_timeline", b"[]"))
    assert repair(meeting) == {meeting.path.name: ("rebuilt", None)}
    assert {name: (meeting.path / name).read_bytes() for name in meeting.stored()} == before


def test_a_rebuilt_manifest_tells_of_damaged_and_lost_lists(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    good = (meeting.path / "participants.json").read_bytes()
    for name in ("participants.json", "participant_events.json"):
        with (meeting.path / name).open("r+b") as file:
            file.write(b"#")
    (meeting.path / "speaker_timeline.json").unlink()
    (meeting.path / "manifest.json").unlink()
    simulator.add_faults(body("participant_events", b"[]"))
    outcomes = repair(meeting)
    assert outcomes[meeting.path.name] == ("rebuilt", None)
    assert outcomes["participants.json"] == ("replaced", None)
    assert (meeting.path / "participants.json").read_bytes() == good
    manifest = manifest_of(meeting)
    assert [one.name for one in manifest.documents] == ["participants"]
    assert [(one.name, one.error_code) for one in manifest.documents_missing] == [
        ("participant_events", "content_conflict"),
        ("speaker_timeline", "not_archived"),
    ]


@pytest.mark.usefixtures("no_supervisor")
@pytest.mark.parametrize("keep", [True, False])
def test_a_setting_switches_them_off(
    simulator: RunningSimulator, root: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    if not keep:
        monkeypatch.setenv("AIRFLOW_VAR_RECALL_KEEP_DOCUMENTS", "false")
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]}, participants=[person(1, "Ada"), person(2, "Mute")])
    receipts = [receipt for batch in meeting.plan() for receipt in meeting.archive(batch)]
    recording = {"recording_id": meeting.recording_id, "folder": meeting.folder, "bot_id": meeting.bot_id}
    task = operators.RecallSettleRecordingOperator(task_id="settle", recording=recording, archived=[receipts])
    context = Context()
    context["outlet_events"] = {operators.RECORDING_ARCHIVED: type("Event", (), {"extra": None})()}
    task.execute(context)  # type: ignore[arg-type]
    manifest = manifest_of(meeting)
    assert [one.name for one in manifest.documents] == (DOCUMENTS if keep else [])
    assert manifest.documents_missing == ()
    assert {name for name in meeting.stored() if name.endswith(".json")} == {
        "manifest.json",
        *(f"{name}.json" for name in DOCUMENTS if keep),
    }
    assert [one.name for one in manifest.participants] == ["Ada", "Mute"]
