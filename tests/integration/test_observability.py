"""What a whole Airflow tells of its runs: metrics to a StatsD server, lineage to a file, lines to the tasks' logs."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from include.simulator.process import running_simulator
from scripts.local_airflow import LocalAirflow
from tests.integration.conftest import API_KEY, WEBHOOK_SECRET
from tests.metrics_sink import StatsdSink, statsd_sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from include.simulator.process import RunningSimulator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAG = "archive_meeting"
NAMES = ["Ada Lovelace", "Grace Hopper", "Mary Jackson"]
PARTS = [
    {"participant": {"id": 100 + number, "name": name}, "audio": {"seed": number, "bytes": 64_000}}
    for number, name in enumerate(NAMES)
]


@dataclass
class Told:
    """What was told of a day's work."""

    metrics: StatsdSink
    events: list[dict[str, Any]]
    logs: dict[str, str]
    recording_id: str
    labels: set[str]
    asked: list[dict[str, Any]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Let a meeting be waited for and archived, another fail, a webhook be forged, the sweep and a verification run."""
    # One of its own: others' meetings would be swept, and others' requests counted.
    with running_simulator("--api-key", API_KEY, "--no-rate-limit", "--page-size", "2") as simulator:
        yield tell(simulator, tmp_path_factory)


def tell(simulator: RunningSimulator, tmp_path_factory: pytest.TempPathFactory) -> Told:
    archive, events = tmp_path_factory.mktemp("observed archive"), tmp_path_factory.mktemp("lineage")
    recall = {**simulator.connection, "extra": {**simulator.connection["extra"], "webhook_secrets": [WEBHOOK_SECRET]}}
    with statsd_sink() as metrics:
        env = {
            "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(recall),
            "AIRFLOW_VAR_RECALL_ARCHIVE_URI": archive.as_uri(),
            "AIRFLOW_VAR_RECALL_POLL_SECONDS": "1",
            "AIRFLOW_VAR_RECALL_REQUEST_SHARE": "100",
            # On a Sunday, Airflow would start the run of that night as soon as the Dag is switched on.
            "AIRFLOW_VAR_RECALL_VERIFY_SCHEDULE": "off",
            "AIRFLOW__METRICS__STATSD_ON": "True",
            # Airflow's own are many, and a datagram that finds no room is lost.
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "recall",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(metrics.port),
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(events / "event")}),
            "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
        }
        with LocalAirflow(tmp_path_factory.mktemp("airflow"), env) as airflow:
            meeting = simulator.add_meeting(live=True, recordings=[{"artifacts": [{"parts": PARTS}]}])
            timeline = [{"at": 0, "code": "joining_call"}, {"at": 5, "code": "fatal", "sub_code": "meeting_not_found"}]
            fatal = simulator.add_meeting(created_at="2026-03-04T09:55:00+00:00", recordings=[], timeline=timeline)
            runs = [airflow.trigger(DAG, {"bot_id": one["bot_id"]}) for one in (meeting, fatal)]
            reply = requests.post(f"{airflow.url}/recall/webhooks", data=b"{}", timeout=30)
            assert reply.status_code == 401
            wait(lambda: "deferred" in {one["state"] for one in airflow.task_instances(DAG, runs[0])})
            bot = f"/api/v1/bot/{meeting['bot_id']}/"
            # The task's look, and the triggerer's.
            wait(lambda: sum(one["path"] == bot for one in simulator.journal("api")) >= 3)
            time.sleep(1)  # that it is waited for this long is a metric
            simulator.advance(7200)
            assert [airflow.wait(DAG, run)["state"] for run in runs] == ["success", "failed"]
            for other in ("sweep_recordings", "verify_archive"):
                assert airflow.wait(other, airflow.trigger(other))["state"] == "success"
            wait(lambda: any(one["job"]["name"] == "verify_archive.report" for one in read(events)))
            labels = {
                one["rendered_map_index"]
                for one in airflow.task_instances(DAG, runs[0])
                if one["task_id"] == "archive_participant"
            }
            logs = {
                str(path.relative_to(airflow.home / "logs")): path.read_text("utf-8")
                for path in (airflow.home / "logs").rglob(f"dag_id={DAG}/run_id={runs[0]}/**/*.log")
            }
        asked = [one for one in simulator.journal("api") if not one["path"].startswith("/api/v1/download/")]
        return Told(metrics, read(events), logs, meeting["recordings"][0]["id"], labels, asked)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in folder.iterdir() if path.stat().st_size]


def test_a_days_work_is_counted(told: Told) -> None:
    counted = told.metrics.counted()
    assert counted["recall.parts.stored"] == 3
    assert counted["recall.bytes"] == 3 * 64_000
    assert counted["recall.meetings.archived"] == 1
    assert counted["recall.errors.bot_fatal"] == 1
    assert counted["recall.webhooks.webhook_unsigned"] == 1
    assert counted["recall.verify.objects"] >= 3
    assert counted["recall.api.calls.retrieve.ok"] > counted["recall.api.calls.list.ok"] > 0
    times = told.metrics.ours("ms")
    assert len(times["recall.part_duration"]) == 3
    (waited,) = times["recall.wait"]
    assert waited > 1000, "it was waited for in the triggerer"
    gauges = told.metrics.ours("g")
    assert (gauges["recall.sweep.recordings.archived"], gauges["recall.verify.unrepaired"]) == ([1], [0])
    assert gauges.keys() >= {"recall.sweep.found", "recall.sweep.owed"}


def test_the_triggerers_requests_are_counted(told: Told) -> None:
    counted = told.metrics.counted()
    assert sum(n for name, n in counted.items() if name.startswith("recall.api.calls.")) == len(told.asked)


def test_lineage_leads_from_recall_to_the_folders(told: Told) -> None:
    done = [one for one in told.events if one["eventType"] == "COMPLETE"]
    archived = [one for one in done if one["job"]["name"] == f"{DAG}.archive_participant"]
    (settled,) = (one for one in done if one["job"]["name"] == f"{DAG}.settle")
    source = f"recording/{told.recording_id}/audio_separate"
    assert len(archived) == 3
    for one in [*archived, settled]:
        assert [data["name"] for data in one["inputs"]] == [source]
    folders = [Path(one["outputs"][0]["name"]) for one in archived]
    assert sorted(one.name for one in folders) == ["participant=100", "participant=101", "participant=102"]
    for one, folder in zip(archived, folders, strict=True):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert one["outputs"][0]["outputFacets"]["outputStatistics"]["size"] == size
    assert {Path(settled["outputs"][0]["name"])} == {one.parent for one in folders}


def test_a_part_is_one_line(told: Told) -> None:
    lines = [line for log in told.logs.values() for line in log.splitlines() if "include.provider" in line]
    stored = [line for line in lines if ": stored 64044 bytes in " in line]
    assert len(stored) == 3
    assert all(re.search(r"Participant 10\d: stored .*MiB/s\) as participant=10\d/", one) for one in stored)


def test_nothing_that_is_told_names_anybody(told: Told) -> None:
    """Names are for those who look at the run, where the tasks carry them."""
    assert told.labels == set(NAMES)
    assert told.logs
    said = [json.dumps(told.events), *told.metrics.lines, *told.logs.values()]
    for one in said:
        for secret in (*NAMES, API_KEY, WEBHOOK_SECRET, "token=", "gAAAA"):  # the last begins a sealed link
            assert secret not in one
