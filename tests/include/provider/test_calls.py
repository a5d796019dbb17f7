"""How many calls to the API a recording costs, and that a link never travels in clear."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import requests
from airflow.sdk import crypto
from cryptography.fernet import Fernet

from include.provider import operators, sealing, transfer
from include.provider.sensors import RecallRecordingSensor
from include.recall.models import AudioArtifact
from tests.include.provider.conftest import LONG_AGO, Context
from tests.include.provider.test_wait import fire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.process import RunningSimulator


pytestmark = pytest.mark.usefixtures("no_supervisor")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A Fernet key as a deployment has one."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    crypto.get_fernet.cache_clear()
    yield monkeypatch
    crypto.get_fernet.cache_clear()


class Run:
    """The tasks of a run, each with what the ones before it left in XCom."""

    def __init__(self, bot_id: str | None = None, recording_id: str | None = None) -> None:
        self.left: dict[str, dict[str, Any]] = {}
        self.sensor = RecallRecordingSensor(task_id="wait", bot_id=bot_id, recording_id=recording_id)
        self.list = operators.RecallListParticipantAudioOperator(task_id="list", recordings=[])
        self.list.upstream_task_ids = {"wait"}

    def context(self, name: str, *after: str) -> Context:
        context = Context()
        for one in after:
            for key, value in self.left[one].items():
                context["ti"].others[f"{one}/{key}"] = [value]
        self.left[name] = context["ti"].pushed
        return context

    def wait(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.sensor.execute(self.context("wait"))  # type: ignore[arg-type]
        return found

    def archive(self, recordings: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        self.list.recordings = recordings
        batches = self.list.execute(self.context("list", "wait"))  # type: ignore[arg-type]
        receipts = []
        for number, batch in enumerate(batches):
            task = operators.RecallArchiveParticipantOperator(task_id=f"archive_{number}", batch=batch)
            task.upstream_task_ids = {"list"}
            receipts.append(task.execute(self.context(task.task_id, "list")))  # type: ignore[arg-type]
        return receipts

    def settle(self, recording: dict[str, Any], receipts: list[list[dict[str, Any]]]) -> dict[str, Any]:
        task = operators.RecallSettleRecordingOperator(task_id="settle", recording=recording, archived=receipts)
        context = self.context("settle")
        context["outlet_events"] = {operators.RECORDING_ARCHIVED: type("Event", (), {"extra": None})()}
        return task.execute(context)  # type: ignore[arg-type]

    def after_the_wait(self, recordings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        receipts = self.archive(recordings)
        return [self.settle(one, receipts) for one in recordings]


def people(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"participant": {"id": one, "name": f"P{one}"}, "audio": {"seed": one, "bytes": 320}, **more}
        for one in range(count)
    ]


def calls(simulator: RunningSimulator) -> Counter[str]:
    """Count the calls of the API by the limit that they count against."""
    kinds: Counter[str] = Counter()
    for one in simulator.journal("api"):
        resource, *rest = one["path"].removeprefix("/api/v1/").strip("/").split("/")
        if resource != "download":
            kinds["retrieve" if rest else "list"] += 1
    return kinds


@pytest.mark.parametrize("count", [1, 8, 100])
def test_calls_do_not_grow_with_participants(simulator: RunningSimulator, count: int) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(count)}]}])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    assert calls(simulator) == {"retrieve": 1, "list": 1}
    simulator.control("DELETE", "/journal")
    (settled,) = run.after_the_wait(recordings)
    assert settled["parts"] == count
    assert calls(simulator) == {"retrieve": 2}


def test_each_recording_of_each_form_costs_few_calls(simulator: RunningSimulator) -> None:
    both = {"audio_separate_raw": {}, "audio_separate_mp3": {}}
    ogg = {"format": "ogg", "parts": people(3, audio={"seed": 3, "bytes": 5000, "head_hex": "4f676753"})}
    recording = {"artifacts": [{"parts": people(5)}, ogg]}
    ids = simulator.add_meeting(created_at=LONG_AGO, recording_config=both, recordings=[recording, recording])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    simulator.control("DELETE", "/journal")
    assert [one["parts"] for one in run.after_the_wait(recordings)] == [8, 8]
    assert calls(simulator) == {"retrieve": 6}


def test_one_recording_alone_costs_few_calls(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(9)}]}])
    run = Run(recording_id=ids["recordings"][0]["id"])
    recordings = run.wait()
    simulator.control("DELETE", "/journal")
    run.after_the_wait(recordings)
    assert calls(simulator) == {"retrieve": 2}


def test_a_bot_that_does_not_tell_what_was_asked_for_is_listed_once_more(simulator: RunningSimulator) -> None:
    """Another artifact may turn up then, so the list is read by each step that counts on it."""
    artifacts = [{"parts": people(9)}]
    ids = simulator.add_meeting(created_at=LONG_AGO, omit=["recording_config"], recordings=[{"artifacts": artifacts}])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    assert recordings[0]["artifact_ids"] == []
    simulator.control("DELETE", "/journal")
    run.after_the_wait(recordings)
    assert calls(simulator) == {"list": 2, "retrieve": 1}


def test_a_second_run_costs_two_calls(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(40)}]}])
    first = Run(ids["bot_id"])
    first.after_the_wait(first.wait())
    simulator.control("DELETE", "/journal")
    again = Run(ids["bot_id"])
    again.after_the_wait(again.wait())
    assert calls(simulator) == {"retrieve": 1, "list": 1}
    assert simulator.journal("media") == []


def test_the_trigger_hands_its_links_on(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(5)}]}])
    event = fire(bot_id=ids["bot_id"])
    assert "token=" not in json.dumps(event)
    (sealed,) = event["sealed"].values()
    assert sealed not in str(event), "Airflow logs the event"
    simulator.control("DELETE", "/journal")
    run = Run(ids["bot_id"])
    recordings = run.sensor.resume(run.context("wait"), json.loads(json.dumps(event)))  # type: ignore[arg-type]
    assert run.after_the_wait(recordings)[0]["parts"] == 5
    assert calls(simulator) == {"retrieve": 2}


def test_without_a_key_no_link_is_handed_on_and_the_calls_are_made(
    simulator: RunningSimulator, key: pytest.MonkeyPatch
) -> None:
    key.setenv("AIRFLOW__CORE__FERNET_KEY", "")
    crypto.get_fernet.cache_clear()
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(5)}]}])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    simulator.control("DELETE", "/journal")
    assert run.after_the_wait(recordings)[0]["parts"] == 5
    assert not any(sealing.SEALED_KEY in left for left in run.left.values())
    assert calls(simulator) == {"retrieve": 1 + 5 + 2}


def test_nothing_that_is_handed_on_holds_a_link(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(5)}]}])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    receipts = run.archive(recordings)
    assert set(run.left["wait"][sealing.SEALED_KEY]) == set(run.left["list"][sealing.SEALED_KEY])
    said = json.dumps([run.left, recordings, receipts])
    assert "token" not in said
    assert "://" not in said


@pytest.mark.parametrize("how", ["late", "another key", "tampered", "of another artifact"])
def test_a_seal_that_does_not_hold_costs_a_call_and_nothing_else(
    simulator: RunningSimulator, key: pytest.MonkeyPatch, how: str
) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(1)}]}])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    links = run.left["wait"][sealing.SEALED_KEY]
    (artifact_id,) = links
    if how == "late":
        now = time.time()
        key.setattr(time, "time", lambda: now + sealing.SEAL_SECONDS + 1)
    elif how == "another key":
        key.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
        crypto.get_fernet.cache_clear()
    elif how == "tampered":
        links[artifact_id] = links[artifact_id][:-9] + "AAAAAAAA="
    else:
        links["another"] = links.pop(artifact_id)
    assert sealing.unseal([links, None]) == {}
    simulator.control("DELETE", "/journal")
    assert run.after_the_wait(recordings)[0]["parts"] == 1
    assert calls(simulator) == {"retrieve": 3}


def test_a_refused_link_is_replaced(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(1)}]}])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    simulator.add_faults({"origin": "api", "path": "/download/", "times": 1, "action": {"expired": True}})
    simulator.control("DELETE", "/journal")
    assert run.after_the_wait(recordings)[0]["parts"] == 1
    assert calls(simulator) == {"retrieve": 3}


def test_an_artifact_lost_after_the_wait_does_not_cost_the_other(simulator: RunningSimulator) -> None:
    both = {"audio_separate_raw": {}, "audio_separate_mp3": {}}
    recording = {"artifacts": [{"parts": people(1)}, {"format": "ogg", "parts": people(1)}]}
    ids = simulator.add_meeting(created_at=LONG_AGO, recording_config=both, recordings=[recording])
    run = Run(ids["bot_id"])
    recordings = run.wait()
    _, second = recordings[0]["artifact_ids"]
    headers = {"Authorization": simulator.api_key}
    requests.delete(f"{simulator.base_url}/api/v1/audio_separate/{second}/", headers=headers, timeout=10)
    (settled,) = run.after_the_wait(recordings)
    assert (settled["outcome"], settled["parts"]) == ("archived_with_gaps", 1)


def test_rows_fit_whatever_their_size(simulator: RunningSimulator) -> None:
    """A thousand people, twenty thousand parts, and links as long as S3 can make them."""
    parts = [{**one, "repeat": 20} for one in people(1000)]
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": parts}]}])
    run = Run(ids["bot_id"])
    run.list.recordings = run.wait()
    batches = run.list.execute(run.context("list", "wait"))  # type: ignore[arg-type]
    rows = [batches, *run.left["wait"].values(), *run.left["list"].values()]
    assert len(batches) == 40
    assert all(len(json.dumps(row)) < transfer.XCOM_LIMIT for row in rows)


def test_seals_beyond_one_row_are_left_out() -> None:
    artifacts = [
        AudioArtifact.parse(
            {
                "id": f"a{number}",
                "recording": {"id": "r"},
                "created_at": "2026-03-04T09:55:40Z",
                "status": {"code": "done", "sub_code": None},
                "data": {"download_url": f"https://media.example/{number}?x-amz-security-token={'x' * 2000}"},
                "format": "raw",
            }
        )
        for number in range(40)
    ]
    sealed = sealing.seal(artifacts)
    assert 10 < len(sealed) < 40
    assert len(json.dumps(sealed)) <= transfer.XCOM_LIMIT
    opened = sealing.unseal([sealed])
    assert opened["a0"].download_url == artifacts[0].download_url
