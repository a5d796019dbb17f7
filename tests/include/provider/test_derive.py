"""The tasks that make files from what is archived, and the example Dags, on a meeting that was really archived."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import manifest as manifests
from include.archive.copy import Stop
from include.errors import CodedError
from include.provider import derive
from include.provider.assets import RECORDING_ARCHIVED
from include.simulator.audio import demo_meeting
from tests.include.provider.conftest import Context
from tests.include.provider.test_transfer import Meeting, part

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator

ROOT = Path(__file__).resolve().parents[3]


class Event:
    """What our code uses of an asset event."""

    def __init__(self, **extra: Any) -> None:
        self.extra = extra


def events(*meetings: Meeting) -> dict[Any, list[Event]]:
    found: dict[Any, list[Event]] = defaultdict(list)
    found[RECORDING_ARCHIVED] += [Event(recording_id=one.recording_id, folder=one.folder) for one in meetings]
    return found


def context_of(*meetings: Meeting, recording_id: str | None = None) -> Context:
    context = Context()
    context["params"] = {"recording_id": recording_id}
    if meetings:
        context["triggering_asset_events"] = events(*meetings)
    return context


def callable_of(dag_file: str, task_id: str) -> Any:
    """Return the function behind a task of one of our Dag files."""
    spec = importlib.util.spec_from_file_location(dag_file, ROOT / "dags" / f"{dag_file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, dag_file)().get_task(task_id).python_callable


@pytest.fixture
def root(simulator: RunningSimulator, tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture(autouse=True)
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shown: list[str] = []
    monkeypatch.setattr(derive, "show_label", lambda context, label: shown.append(label))
    return shown


def work(context: Context) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = derive.RecallFindArchivedOperator(task_id="find").execute(context)  # type: ignore[arg-type]
    return found


def test_the_demo_meeting_is_made_into_tracks_and_flac(
    simulator: RunningSimulator, root: Path, labels: list[str]
) -> None:
    meeting = Meeting(simulator, root)
    meeting.run()
    found = work(context_of(meeting))
    assert found == [{"kind": kind, "folders": [meeting.folder]} for kind in ("aligned", "flac")]
    before = {name: (meeting.path / name).read_bytes() for name in meeting.stored()}
    made = {}
    for one in found:
        (made[one["kind"]],) = derive.RecallDeriveAudioOperator(task_id="make", work=one).execute(Context())  # type: ignore[arg-type]
    assert labels == [f"aligned: {meeting.recording_id}", f"flac: {meeting.recording_id}"]
    assert (made["aligned"]["made"], made["flac"]["made"], made["flac"]["skipped"]) == (1, 9, 0)
    assert made["flac"]["bytes"] < 0.7 * made["flac"]["source_bytes"]
    channels = json.loads((meeting.path / "derived/aligned.json").read_bytes())["files"][0]["channels"]
    assert [one["participant_id"] for one in channels] == [100, 101, 102, 103, 104]
    manifest = manifests.load(meeting.ends.store, meeting.folder)
    assert manifest is not None
    assert manifests.check(meeting.ends.store, meeting.folder, manifest, deep=True) == []
    assert {name: (meeting.path / name).read_bytes() for name in before} == before
    assert all("derived/" in name for name in set(meeting.stored()) - set(before))


def test_a_setting_names_the_kinds(simulator: RunningSimulator, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meetings = [Meeting(simulator, root, {"parts": [part(1, seed)]}) for seed in range(3)]
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DERIVED_AUDIO", " flac ")
    monkeypatch.setattr(derive, "MOST_TASKS", 2)
    for meeting in meetings:
        meeting.run()
    found = work(context_of(*meetings))
    assert [(one["kind"], len(one["folders"])) for one in found] == [("flac", 2), ("flac", 1)]
    assert sorted(folder for one in found for folder in one["folders"]) == sorted(one.folder for one in meetings)
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DERIVED_AUDIO", "mp3")
    with pytest.raises(CodedError) as caught:
        work(context_of(*meetings))
    assert caught.value.code == "bad_setting"


def test_one_recording_by_hand(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    context = context_of(recording_id=meeting.recording_id)
    with pytest.raises(CodedError):
        work(context)
    assert context.error is not None
    assert context.error["code"] == "recording_not_archived"
    meeting.run()
    assert [one["folders"] for one in work(context_of(recording_id=meeting.recording_id))] == [[meeting.folder]] * 2
    assert work(context_of()) == []


def test_one_recording_that_fails_does_not_cost_the_others(simulator: RunningSimulator, root: Path) -> None:
    meetings = [Meeting(simulator, root, {"parts": [part(1, seed)]}) for seed in range(3)]
    for meeting in meetings:
        meeting.run()
    (broken,) = meetings[0].path.rglob("*.wav")
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    context = Context()
    task = derive.RecallDeriveAudioOperator(
        task_id="make", work={"kind": "flac", "folders": [one.folder for one in meetings]}
    )
    with pytest.raises(CodedError):
        task.execute(context)  # type: ignore[arg-type]
    assert context.error is not None
    assert context.error["code"] == "integrity_failed"
    assert [(one.path / "derived/flac.json").exists() for one in meetings] == [False, True, True]


def test_it_ends_when_it_is_told_to(simulator: RunningSimulator, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Meeting(simulator, root, {"parts": [part(1, 1)]})
    meeting.run()
    monkeypatch.setattr(Stop, "is_set", lambda self: True)
    task = derive.RecallDeriveAudioOperator(task_id="make", work={"kind": "flac", "folders": [meeting.folder]})
    task.on_kill()
    with pytest.raises(CodedError) as caught:
        task.execute(Context())  # type: ignore[arg-type]
    assert caught.value.code == "stopped"


def test_example_talk_time_fills_a_table_once(
    simulator: RunningSimulator, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Meeting(simulator, root, participants=demo_meeting()["participants"])
    meeting.run()
    database = tmp_path / "warehouse.db"
    connection = {"conn_type": "sqlite", "host": str(database)}
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_WAREHOUSE", json.dumps(connection))
    load = callable_of("example_talk_time", "load_talk_time")
    for _ in range(2):
        assert load(**context_of(meeting)) == 6
    with sqlite3.connect(database) as reader:
        rows = reader.execute("SELECT * FROM talk_time ORDER BY participant_id").fetchall()
    reader.close()
    assert [row[1] for row in rows] == [100, 101, 102, 103, 104, 105]
    assert {row[0] for row in rows} == {meeting.recording_id}
    assert {row[2] for row in rows} == {meeting.folder[3:13]}
    assert {row[4] for row in rows} == {"speaker_timeline"}
    timeline = json.loads((meeting.path / "speaker_timeline.json").read_bytes())
    for row in rows:
        told = sum(
            one["end_timestamp"]["relative"] - one["start_timestamp"]["relative"]
            for one in timeline
            if one["participant"]["id"] == row[1]
        )
        assert row[3] == pytest.approx(told, abs=0.01)
    assert rows[5][3] == 0.0  # was there and never spoke


def test_example_on_recording_archived_adds_up(simulator: RunningSimulator, root: Path) -> None:
    meeting = Meeting(simulator, root)
    meeting.run()
    seconds = callable_of("example_on_recording_archived", "talk_time")(**context_of(meeting))
    assert set(seconds) == {f"{meeting.recording_id}/{who}" for who in (100, 101, 102, 103, 104)}
    assert all(value > 3 for value in seconds.values())


def test_example_transcribe_finds_each_turn(simulator: RunningSimulator, root: Path) -> None:
    """The stand-in knows no words, but it must know when somebody speaks."""
    meeting = Meeting(simulator, root)
    meeting.run()
    (folder,) = callable_of("example_transcribe", "find_recordings")(**context_of(meeting))
    transcribe = callable_of("example_transcribe", "transcribe")
    key = transcribe(folder)
    stored = (root / key).read_bytes()
    assert transcribe(folder) == key
    assert (root / key).read_bytes() == stored
    transcript = json.loads(stored)
    assert transcript["left_out"] == []
    turns = demo_meeting()["turns"].values()
    for turn in turns:
        mine = [one for one in transcript["segments"] if one["participant_id"] == turn["speaker"]]
        assert any(abs(one["start"] - turn["at"]) < 0.5 for one in mine), turn["text"]
    assert {one["participant_id"] for one in transcript["segments"]} == {turn["speaker"] for turn in turns}
    assert {one["text"] for one in transcript["segments"]} == {None}
    assert manifests.check(meeting.ends.store, folder, manifests.load(meeting.ends.store, folder)) == []  # type: ignore[arg-type]
