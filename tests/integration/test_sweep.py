"""The sweep in a real Airflow: it starts runs that get archived, once each, and leaves to people what is theirs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from include.simulator.process import RunningSimulator, running_simulator
from scripts.local_airflow import LocalAirflow
from tests.at_rest import at_rest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAG = "sweep_recordings"
DOCS = Path(__file__).resolve().parents[2] / "docs/sweep.md"
SMALL = [{"parts": [{"participant": {"id": 1, "name": "Ada"}, "audio": {"seed": 1, "bytes": 3200}}]}]


@pytest.fixture(scope="module")
def recall() -> Iterator[RunningSimulator]:
    with running_simulator("--no-rate-limit", "--page-size", "3") as running:
        yield running


@pytest.fixture(scope="module")
def sweeping(recall: RunningSimulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """An Airflow of its own, in which the sweep runs by itself."""
    archive = tmp_path_factory.mktemp("swept archive")
    env = {
        "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(recall.connection),
        "AIRFLOW_VAR_RECALL_ARCHIVE_URI": archive.as_uri(),
        "AIRFLOW_VAR_RECALL_POLL_SECONDS": "1",
        "AIRFLOW_VAR_RECALL_REQUEST_SHARE": "100",
        "AIRFLOW_VAR_RECALL_PLATFORMS": "microsoft_teams",
        # Once by itself, for the last hour of that day, and then not for months; and hours for the page's backfill.
        "AIRFLOW_VAR_RECALL_SWEEP_SCHEDULE": "0 8,9,10 4 3 *",
    }
    with LocalAirflow(tmp_path_factory.mktemp("airflow"), env) as running:
        running.wait_for_dag("archive_meeting")
        yield running


def archive_of(airflow: LocalAirflow) -> Path:
    return Path(airflow.env["AIRFLOW_VAR_RECALL_ARCHIVE_URI"].removeprefix("file://").replace("%20", " "))


def manifests(airflow: LocalAirflow) -> set[str]:
    folders = (path.parent.name for path in archive_of(airflow).glob("dt=*/*/manifest.json"))
    return {name.removeprefix("recording=") for name in folders}


def sweep(airflow: LocalAirflow, **conf: Any) -> dict[str, Any]:
    run = airflow.wait(DAG, airflow.trigger(DAG, conf))
    assert run["state"] == "success"
    return summary(airflow, run["dag_run_id"])


def summary(airflow: LocalAirflow, run_id: str) -> dict[str, Any]:
    found = airflow.xcom(DAG, run_id, "start_archiving")
    done: dict[str, Any] = found if isinstance(found, dict) else json.loads(found)
    return done


def runs(airflow: LocalAirflow, dag_id: str) -> dict[str, str]:
    found = airflow.get(f"/dags/{dag_id}/dagRuns?limit=100")["dag_runs"]
    return {one["dag_run_id"]: one["state"] for one in found}


def wait_until_quiet(airflow: LocalAirflow, dag_id: str, but_for: str = "") -> None:
    end = time.monotonic() + 600
    while {state for one, state in runs(airflow, dag_id).items() if one != but_for} & {"queued", "running"}:
        assert time.monotonic() < end, runs(airflow, dag_id)
        time.sleep(0.5)


def meeting(recall: RunningSimulator, created_at: str | None = None, **more: Any) -> str:
    created_at = created_at or (datetime.now(timezone.utc) - timedelta(hours=20)).isoformat()
    recording = {"artifacts": SMALL, **more.pop("recording", {})}
    ids = recall.add_meeting(created_at=created_at, recordings=[recording], **more)
    recording_id: str = ids["recordings"][0]["id"]
    return recording_id


def test_it_runs_by_itself_and_leaves_to_people_what_is_theirs(
    sweeping: LocalAirflow, recall: RunningSimulator
) -> None:
    sweeping.wait_for_dag(DAG)
    end = time.monotonic() + 600
    while not runs(sweeping, DAG):
        assert time.monotonic() < end
        time.sleep(0.5)
    wait_until_quiet(sweeping, DAG)
    (by_itself,) = runs(sweeping, DAG)
    assert by_itself.startswith("scheduled__")

    wanted = {meeting(recall) for _ in range(4)}
    elsewhere = meeting(recall, meeting_url="https://example.zoom.us/j/1")
    # The bot still records when its first recording is finished.
    in_call = [
        {"at": 0, "code": "in_call_recording"},
        {"at": 86400, "code": "call_ended"},
        {"at": 86401, "code": "done"},
    ]
    recordings = [{"artifacts": SMALL, "starts": 0, "ends": 1}]
    waiting = recall.add_meeting(live=True, timeline=in_call, recordings=recordings)
    person = sweeping.trigger("archive_meeting", {"bot_id": waiting["bot_id"]})
    end = time.monotonic() + 600
    while "deferred" not in {one["state"] for one in sweeping.task_instances("archive_meeting", person)}:
        assert time.monotonic() < end
        time.sleep(0.3)
    recall.advance(60)

    planned = sweep(sweeping, plan=True)
    assert set(planned["ids"]["would_start"]) == {*wanted, elsewhere}
    assert planned["ids"]["running"] == [waiting["recordings"][0]["id"]]
    assert runs(sweeping, "archive_meeting").keys() == {person}

    first = sweep(sweeping)
    assert set(first["ids"]["started"]) == {*wanted, elsewhere}
    wait_until_quiet(sweeping, "archive_meeting", but_for=person)
    assert manifests(sweeping) == wanted
    before = runs(sweeping, "archive_meeting")
    assert before == {person: "running"} | {f"recording__{one}": "success" for one in (*wanted, elsewhere)}

    second = sweep(sweeping)
    assert second["counts"]["started"] == 0
    assert set(second["ids"]["archived"]) == wanted
    assert second["ids"]["left_out"] == {elsewhere: "recall_platforms: zoom"}
    assert runs(sweeping, "archive_meeting") == before
    skipped = sweeping.task_instances("archive_meeting", f"recording__{elsewhere}")
    assert {one["state"] for one in skipped} == {"skipped"}


def test_a_run_that_failed_is_cleared_in_time(sweeping: LocalAirflow, recall: RunningSimulator) -> None:
    hopeless = meeting(recall, recording={"artifacts": [{"status": "failed"}]})
    soon = (datetime.now(timezone.utc) + timedelta(hours=3)).isoformat()
    patient, urgent = meeting(recall), meeting(recall, recording={"expires_at": soon})
    for one in (patient, urgent):  # their runs look at something that fails at once
        sweeping.trigger("archive_meeting", {"recording_id": hopeless}, run_id=f"recording__{one}")
        sweeping.wait("archive_meeting", f"recording__{one}")
    done = sweep(sweeping)
    assert (done["ids"]["paused"], done["ids"]["started"]) == ([patient], [urgent])
    sweeping.wait("archive_meeting", f"recording__{urgent}")
    tries = {
        one: ti["try_number"]
        for one in (patient, urgent)
        for ti in sweeping.task_instances("archive_meeting", f"recording__{one}")
        if ti["task_id"] == "wait_for_recordings"
    }
    assert tries == {patient: 1, urgent: 2}


def commands() -> list[list[str]]:
    """What the page tells people to type."""
    return [shlex.split(line) for line in re.findall(r"^    (airflow .*)$", DOCS.read_text("utf-8"), re.MULTILINE)]


def test_the_commands_of_the_page(sweeping: LocalAirflow, recall: RunningSimulator) -> None:
    wait_until_quiet(sweeping, DAG)
    by_hand = meeting(recall, "2026-03-02T10:00:00+00:00")
    by_backfill = meeting(recall, "2026-03-04T08:30:00+00:00", recording={"status": "processing"})
    assert len(commands()) == 3
    for words in commands():
        before = runs(sweeping, DAG)
        command = [sys.executable, "-m", *words]
        with at_rest(sweeping):
            ran = subprocess.run(
                command, env=sweeping.env, cwd=sweeping.home, capture_output=True, text=True, timeout=600
            )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        time.sleep(1)
        wait_until_quiet(sweeping, DAG)
        new = [one for one in runs(sweeping, DAG).items() if one[0] not in before]
        assert new
        assert {state for _, state in new} == {"success"}
        done = [summary(sweeping, run_id) for run_id, _ in new]
        if "plan" in words[-1]:
            assert "would_start" in done[0]["counts"]
        elif words[0:2] == ["airflow", "dags"]:
            assert done[0]["ids"]["started"] == [by_hand]
        else:
            assert [by_backfill] in [one["ids"]["processing"] for one in done]
            assert all(run_id.startswith("backfill__") for run_id, _ in new)
