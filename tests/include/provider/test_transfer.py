"""A recording's way from the simulator into a local archive, without Airflow."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import manifest as manifests
from include.archive import meeting_page
from include.archive.copy import Stop
from include.archive.errors import StorageError
from include.archive.stores import open_store
from include.errors import CodedError
from include.provider import transfer
from include.provider.hook import RecallHook, folder_of
from include.provider.transfer import Batch, Ends
from include.recall.models import AudioPart
from include.recall.watch import look
from tests.include.provider.conftest import LONG_AGO

if TYPE_CHECKING:
    from pathlib import Path

    from include.simulator.process import RunningSimulator


def person(number: int | None, name: str | None = None) -> dict[str, Any]:
    return {"id": number, "name": name}


def part(number: int, seed: int, size: int = 3200, **more: Any) -> dict[str, Any]:
    return {"participant": person(number, f"P{number}"), "audio": {"seed": seed, "bytes": size}, **more}


class Meeting:
    """One archived meeting and the steps of its run."""

    def __init__(self, simulator: RunningSimulator, root: Path, *artifacts: dict[str, Any], **recording: Any) -> None:
        ids = simulator.add_meeting(
            created_at=LONG_AGO, recordings=[{**recording, **({"artifacts": list(artifacts)} if artifacts else {})}]
        )
        hook = RecallHook()
        self.simulator = simulator
        self.bot_id = ids["bot_id"]
        self.ids = ids["recordings"][0]
        self.recording_id = self.ids["id"]
        self.ends = Ends(
            client=hook.get_conn(), media=hook.get_media(), store=open_store(root.as_uri(), s3_client=None)
        )
        (found,) = look(self.ends.client, bot_id=self.bot_id).recordings
        self.folder = folder_of(found.to_dict())
        self.path = root / self.folder

    def plan(self) -> list[Batch]:
        return transfer.plan(self.ends, [(self.recording_id, self.folder)])

    def archive(self, batch: Batch, **more: Any) -> list[dict[str, Any]]:
        return transfer.archive(self.ends, batch, stop=Stop(), **more)

    def settle(self, receipts: list[dict[str, Any]], reasons: Any = None) -> transfer.Settled:
        return transfer.settle(
            self.ends,
            self.recording_id,
            self.folder,
            bot_id=self.bot_id,
            receipts=receipts,
            reasons=reasons or {},
        )

    def run(self) -> transfer.Settled:
        return self.settle([receipt for batch in self.plan() for receipt in self.archive(batch)])

    def stored(self) -> list[str]:
        return sorted(str(one.relative_to(self.path)) for one in self.path.rglob("*") if one.is_file())

    def fetched(self) -> list[str]:
        return [one["path"] for one in self.simulator.journal("media")]


@pytest.fixture
def root(simulator: RunningSimulator, tmp_path: Path) -> Path:
    return tmp_path / "archive"


def test_raw_and_ogg_side_by_side(simulator: RunningSimulator, root: Path) -> None:
    raw = {"format": "raw", "parts": [part(1, 1), part(2, 2)]}
    ogg = {"format": "ogg", "parts": [part(1, 3, audio={"seed": 3, "bytes": 5000, "head_hex": "4f676753"})]}
    meeting = Meeting(simulator, root, raw, ogg)
    first, second = meeting.plan()
    assert (first.participant_ids, len(first.artifact_ids)) == ([1], 2)
    assert (second.participant_ids, len(second.artifact_ids)) == ([2], 1)
    settled = meeting.run()
    assert (settled.outcome, settled.parts) == ("archived", 3)
    audio = [name for name in meeting.stored() if name.startswith("participant=")]
    assert sorted(name.rpartition(".")[2] for name in audio) == ["ogg", "wav", "wav"]


def test_one_part_lost_keeps_the_others_and_the_next_run_fetches_one(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, seed) for seed in range(12)]})
    lost = meeting.ids["artifacts"][0]["parts"][5]
    simulator.add_faults({"origin": "media", "path": "/5-0", "times": None, "action": {"status": 403}})
    (batch,) = meeting.plan()
    with pytest.raises(CodedError) as caught:
        meeting.archive(batch)
    assert (caught.value.code, caught.value.permanent) == ("media_forbidden", True)
    owed = caught.value.owed  # type: ignore[attr-defined]
    assert [one["part_id"] for one in owed] == [lost]
    assert len(meeting.stored()) == 11
    with pytest.raises(CodedError) as caught:
        meeting.settle([], {(owed[0]["artifact_id"], lost): "media_forbidden"})
    assert caught.value.code == "parts_owed"
    assert {"artifact_id": owed[0]["artifact_id"], "part_id": lost, "code": "media_forbidden"} in caught.value.owed  # type: ignore[attr-defined]
    assert "manifest.json" not in meeting.stored()

    simulator.control("DELETE", "/faults")
    simulator.control("DELETE", "/journal")
    assert meeting.run().parts == 12
    assert len(meeting.fetched()) == 1
    assert "/5-0" in meeting.fetched()[0]


def test_settled_recordings_cost_nothing(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root)
    first = meeting.run()
    before = {name: (meeting.path / name).read_bytes() for name in meeting.stored()}
    simulator.control("DELETE", "/journal")
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == first
    assert simulator.journal() == []
    assert meeting.run() == first
    assert {name: (meeting.path / name).read_bytes() for name in meeting.stored()} == before
    assert meeting.fetched() == []


def test_what_a_killed_writer_of_the_manifest_left_is_removed(simulator: RunningSimulator, root: Path) -> None:
    """Killed between giving the manifest its name and dropping the temporary one."""
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    settled = meeting.run()
    (meeting.path / ".tmp-manifest.json.0123456789abcdef").hardlink_to(meeting.path / "manifest.json")
    (meeting.path / ".tmp-meeting.html.0123456789abcdef").hardlink_to(meeting.path / "meeting.html")
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == settled
    assert not [name for name in meeting.stored() if name.startswith(".")]


def test_a_page_that_a_killed_run_left_out_is_written_by_the_next(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    settled = meeting.run()
    page = meeting.path / "meeting.html"
    written = page.read_bytes()
    page.unlink()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == settled
    assert page.read_bytes() == written
    state = page.stat()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == settled
    assert (page.stat().st_ino, page.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)


def test_a_page_that_cannot_be_written_fails_nobody(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.path.mkdir(parents=True)
    (meeting.path / "meeting.html").mkdir()
    settled = meeting.run()
    assert settled.outcome == "archived"
    assert transfer.already_settled(meeting.ends.store, meeting.folder) == settled


def test_a_page_that_cannot_be_drawn_fails_nobody_and_names_nobody(
    simulator: RunningSimulator, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(*_: Any) -> str:
        raise ValueError("what is Ada Example?")

    monkeypatch.setattr(meeting_page, "settled_page", stumble)
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    assert meeting.run().outcome == "archived"
    assert "ValueError" in caplog.text
    assert "Ada" not in caplog.text
    assert [name for name in meeting.stored() if name.endswith("html")] == []


def test_an_object_that_disappeared_is_fetched_again(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root)
    meeting.run()
    before = (meeting.path / "manifest.json").read_bytes()
    gone = next(one for one in meeting.path.rglob("*.wav"))
    body = gone.read_bytes()
    gone.unlink()
    assert transfer.already_settled(meeting.ends.store, meeting.folder) is None
    assert meeting.run().outcome == "archived"
    assert gone.read_bytes() == body
    assert (meeting.path / "manifest.json").read_bytes() == before


def test_what_a_manifest_lists_is_never_replaced_by_other_bytes(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    (gone,) = meeting.path.rglob("*.wav")
    gone.unlink()
    simulator.add_faults({"origin": "media", "times": None, "action": {"content": {"seed": 99, "bytes": 3200}}})
    with pytest.raises(CodedError) as caught:
        meeting.run()
    assert (caught.value.code, caught.value.permanent) == ("content_conflict", True)
    assert not gone.exists()


def test_receipts_alone_prove_nothing(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1), part(1, 2)]})
    (batch,) = meeting.plan()
    receipts = meeting.archive(batch)
    (meeting.path / receipts[0]["stored"]["key"]).unlink()
    with pytest.raises(CodedError) as caught:
        meeting.settle(receipts)
    assert caught.value.code == "parts_owed"
    assert caught.value.owed[0]["code"] == "object_missing"  # type: ignore[attr-defined]
    assert "manifest.json" not in meeting.stored()


@pytest.mark.parametrize("tail", [b"\xa5", b"\x00\x00"], ids=["flipped", "longer"])
def test_a_tampered_object_stops_the_manifest(simulator: RunningSimulator, root: Path, tail: bytes) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    (batch,) = meeting.plan()
    receipts = meeting.archive(batch)
    path = meeting.path / receipts[0]["stored"]["key"]
    path.write_bytes(path.read_bytes()[:-1] + tail)
    with pytest.raises(CodedError):
        meeting.settle(receipts)
    assert "manifest.json" not in meeting.stored()
    with pytest.raises(CodedError) as caught:
        meeting.archive(batch)
    assert caught.value.code == "content_conflict"


def test_lost_receipts_are_read_from_the_archive(simulator: RunningSimulator, root: Path) -> None:
    """More receipts than a row of XCom holds: settling asks the stored objects instead."""
    meeting = Meeting(simulator, root, {"parts": [part(1, 1, repeat=200, size=320)]})
    (batch,) = meeting.plan()
    receipts = meeting.archive(batch)
    assert transfer.fit_for_xcom(receipts) == []
    simulator.control("DELETE", "/journal")
    assert meeting.settle([]).parts == 200
    assert meeting.fetched() == []


def test_an_artifact_that_is_gone_is_a_gap(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"status": "failed", "sub_code": "codec", "parts": []}, {"parts": [part(1, 1)]})
    assert meeting.run().outcome == "archived_with_gaps"
    manifest = manifests.load(meeting.ends.store, meeting.folder)
    assert manifest is not None
    (gap,) = manifest.missing
    assert (gap.artifact_id, gap.error_code) == (meeting.ids["artifacts"][0]["id"], "media_failed")
    assert "codec" in gap.message


def test_names_and_links_stay_out_of_keys_and_xcom(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1, participant=person(1, "ada-example"))]})
    (batch,) = meeting.plan()
    receipts = meeting.archive(batch)
    settled = meeting.settle(receipts)
    left = json.dumps([batch.to_dict(), receipts, {**settled.to_dict(), "manifest_uri": ""}, meeting.stored()])
    assert batch.recording_id in left
    assert "ada-example" not in left
    assert "://" not in left


def test_a_bad_store_is_found_out_before_anything_is_fetched(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    root.write_text("a file where the archive's folder should be")
    with pytest.raises(StorageError):
        meeting.plan()


def test_nobody_spoke(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": []}, participants=[person(1, "Silent")])
    assert meeting.plan() == []
    assert meeting.settle([]).outcome == "nothing_to_archive"
    manifest = manifests.load(meeting.ends.store, meeting.folder)
    assert manifest is not None
    assert [one.name for one in manifest.participants] == ["Silent"]
    assert manifest.outcome_reason


@pytest.mark.parametrize("participant", [None, person(None)])
def test_unknown_participants_keep_their_audio(simulator: RunningSimulator, root: Path, participant: Any) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1), {**part(1, 2), "participant": participant}]})
    assert meeting.run().parts == 2


def test_shared_and_repeated_ids(simulator: RunningSimulator, root: Path) -> None:
    """One entry listed twice is one part; two different ones that share an id are two."""
    same = part(1, 1, id="same", relative=1.0)
    meeting = Meeting(simulator, root, {"parts": [same, same, part(2, 2, id="same", relative=5.0)]})
    assert meeting.run().parts == 2
    assert meeting.run().parts == 2


def test_ids_that_change_with_each_listing(simulator: RunningSimulator, root: Path) -> None:
    """A link that ran out is replaced although the part's id is a new one."""
    meeting = Meeting(simulator, root, {"parts": [part(1, 1, volatile_id=True)]})
    simulator.add_faults({"origin": "media", "times": 1, "action": {"expired": True}})
    (batch,) = meeting.plan()
    assert len(meeting.archive(batch)) == 1


@pytest.mark.parametrize(("people", "batches"), [(1, 1), (32, 32), (33, 5), (200, 25), (320, 40), (1000, 40)])
def test_batches(simulator: RunningSimulator, root: Path, people: int, batches: int) -> None:
    parts = [part(number, number, size=2) for number in range(people)]
    meeting = Meeting(simulator, root, {"parts": parts})
    planned = meeting.plan()
    assert len(planned) == batches
    assert sorted(one for batch in planned for one in batch.participant_ids) == list(range(people))
    assert len(json.dumps([batch.to_dict() for batch in planned])) < transfer.XCOM_LIMIT


def test_a_killed_task_leaves_nothing_behind(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1, size=3_000_000)]})
    simulator.add_faults({"origin": "media", "times": None, "action": {"rate": 500_000}})
    (batch,) = meeting.plan()
    stop = Stop()
    threading.Timer(1.0, stop.set).start()
    with pytest.raises(CodedError) as caught:
        transfer.archive(meeting.ends, batch, stop=stop)
    assert caught.value.code == "stopped"
    assert meeting.stored() == []


def test_labels_tell_people_apart_and_are_harmless() -> None:
    names = {1: "Ada", 2: "Kim", 3: "Kim", 4: None, 5: "\u202eevil\r\n", 6: "x" * 500, 7: " "}
    parts = [
        AudioPart.parse(
            {
                "id": str(number),
                "participant": {"id": number, "name": name},
                "start_timestamp": {"relative": 0},
                "duration": 1,
                "download_url": "https://media.example/x",
            }
        )
        for number, name in names.items()
    ]
    labels = {number: transfer.label(parts, [number]) for number in names}
    assert labels[1] == "Ada"
    assert (labels[2], labels[3]) == ("Kim (2)", "Kim (3)")
    assert labels[4] == labels[7].replace("7", "4") == "Participant 4"
    assert labels[5] == "\\u202eevil"
    assert len(labels[6]) <= 240
    assert transfer.label(parts, [1, 2, 4, 6, 7]) == "Ada, Kim (2), Participant 4 and 2 more"
