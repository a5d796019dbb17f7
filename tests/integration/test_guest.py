"""The guest of somebody's deployment, installed by the steps of docs/install.md, and our examples in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from include.simulator.process import RunningSimulator, running_simulator
from scripts.local_airflow import LocalAirflow
from tests.mail_sink import MailSink, mail_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
INSTALL = (ROOT / "docs" / "install.md").read_text("utf-8")
OWN_DAGS = (ROOT / "docs" / "own-dags.md").read_text("utf-8")
THEIRS = """
from datetime import datetime
from airflow.sdk import dag, task
from include.theirs import NAME

@dag(schedule=None)
def their_own():
    @task
    def whose():
        import include.provider.hook
        return [NAME, include.provider.hook.__file__]
    whose()

their_own()
"""


def steps(heading: str) -> str:
    """Return the shell commands below a heading of the page."""
    section = INSTALL.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


def person(number: int, name: str, seed: int) -> dict[str, Any]:
    return {"participant": {"id": number, "name": name}, "audio": {"seed": seed, "bytes": 32_000}, "relative": seed}


@pytest.fixture(scope="module")
def recall() -> Iterator[RunningSimulator]:
    with running_simulator("--no-rate-limit") as running:
        yield running


@pytest.fixture(scope="module")
def mails() -> Iterator[MailSink]:
    with mail_sink() as sink:
        yield sink


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment with an `include` and a Dag of its own, to which the steps have been done."""
    folder = tmp_path_factory.mktemp("their deployment")
    (folder / "include").mkdir()
    (folder / "dags").mkdir()
    (folder / "include" / "theirs.py").write_text("NAME = 'theirs'\n")
    (folder / "dags" / "their_own.py").write_text(THEIRS)
    (folder / "requirements.txt").write_text("pandas==2.3.3\n")
    env = {**os.environ, "DEPLOYMENT": str(folder)}
    subprocess.run(["bash", "-euc", steps("The guest of a deployment")], cwd=ROOT, env=env, check=True, timeout=600)
    # The whole Dags of the page on Dags of one's own.
    for number, block in enumerate(whole_dags()):
        (folder / "dags" / f"from_the_page_{number}.py").write_text(block)
    return folder


def whole_dags() -> list[str]:
    return [block for block in re.findall(r"```python\n(.*?)```", OWN_DAGS, re.DOTALL) if "@dag(" in block]


@pytest.fixture(scope="module")
def guest(
    deployment: Path, recall: RunningSimulator, mails: MailSink, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    notifiers = [
        {"notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier", "kwargs": {"to": "o@example.com"}}
    ]
    env = {
        "PYTHONPATH": str(deployment),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(deployment / "plugins"),
        "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(recall.connection),
        "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(mails.connection),
        "AIRFLOW_VAR_RECALL_ARCHIVE_URI": tmp_path_factory.mktemp("archive").as_uri(),
        "AIRFLOW_VAR_RECALL_NOTIFIERS": json.dumps(notifiers),
        "AIRFLOW_VAR_RECALL_REQUEST_SHARE": "100",
        "AIRFLOW_VAR_RECALL_VERIFY_SCHEDULE": "off",
    }
    with LocalAirflow(tmp_path_factory.mktemp("airflow"), env, dags=deployment / "dags") as running:
        yield running


@pytest.fixture(scope="module")
def recording(recall: RunningSimulator) -> dict[str, Any]:
    """A meeting of a moment ago, some of whose audio Recall has lost."""
    artifacts = [
        {"parts": [person(100, "Ada", 1), person(101, "Grace", 3), person(100, "Ada", 5)]},
        {"status": "failed", "parts": []},
    ]
    return recall.add_meeting(
        created_at=datetime.now(timezone.utc).isoformat(), live=False, recordings=[{"artifacts": artifacts}]
    )


def run(airflow: LocalAirflow, dag_id: str, **conf: Any) -> str:
    run_id = airflow.trigger(dag_id, conf)
    state = airflow.wait(dag_id, run_id)["state"]
    tasks = {(one["task_id"], one["state"]) for one in airflow.task_instances(dag_id, run_id)}
    assert state == "success", tasks
    return run_id


def result(airflow: LocalAirflow, dag_id: str, run_id: str, task_id: str) -> Any:
    found = airflow.xcom(dag_id, run_id, task_id)
    return json.loads(found) if isinstance(found, str) and found[:1] in "[{" else found


def test_theirs_and_ours_live_side_by_side(guest: LocalAirflow, deployment: Path) -> None:
    name, path = result(guest, "their_own", run(guest, "their_own"), "whose")
    assert name == "theirs"
    assert Path(path).is_relative_to(deployment)
    requirements = (deployment / "requirements.txt").read_text().splitlines()
    assert requirements[0] == "pandas==2.3.3"
    assert {line.partition("==")[0] for line in requirements if "==" in line} == {
        "pandas",
        "apache-airflow-providers-amazon",
        "requests",
    }


def test_whether_it_works(guest: LocalAirflow) -> None:
    guest.wait_for_dag("archive_meeting")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = []
    for command in steps("Whether it works").splitlines():
        done = subprocess.run(
            ["bash", "-c", command],
            env={**guest.env, "PATH": path},
            cwd=guest.home,
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        printed.append(done.stdout)
    errors, dags, plugins = printed
    assert "No data found" in errors
    assert "archive_meeting" in dags
    assert "recall" in plugins


def test_archive_in_your_dag(guest: LocalAirflow, recall: RunningSimulator, recording: dict[str, Any]) -> None:
    dag_id = "example_archive_in_your_dag"
    run_id = run(guest, dag_id, bot_id=recording["bot_id"])
    recording_id = recording["recordings"][0]["id"]
    assert result(guest, dag_id, run_id, "heard") == {f"{recording_id}/100": 2.0, f"{recording_id}/101": 1.0}
    archive = Path(guest.env["AIRFLOW_VAR_RECALL_ARCHIVE_URI"].removeprefix("file://"))
    (manifest,) = archive.glob(f"dt=*/recording={recording_id}/manifest.json")
    stored = json.loads(manifest.read_bytes())
    assert (stored["outcome"], stored["totals"]["parts"]) == ("archived_with_gaps", 3)
    assert (ROOT / "dags" / f"{dag_id}.py").read_text().count(steps_of_the_page()) == 1


def steps_of_the_page() -> str:
    """Return the wiring that the page shows, which must be the example's own."""
    (block,) = [
        one for one in re.findall(r"```python\n(.*?)```", OWN_DAGS, re.DOTALL) if "RecallRecordingSensor" in one
    ]
    return block


def test_tell_of_gaps(guest: LocalAirflow, mails: MailSink, recording: dict[str, Any]) -> None:
    recording_id = recording["recordings"][0]["id"]
    before = len(mails.mails)
    dag_id = "example_tell_of_gaps"
    found = result(guest, dag_id, run(guest, dag_id), "tell_of_gaps")
    assert [folder.partition("/")[2] for folder in found["with_gaps"]] == [f"recording={recording_id}"]
    assert found["not_settled"] == []
    sent = mails.mails[
        before:
    ]  # two in the first hours of a Monday, when Airflow starts the scheduled run at once, too
    assert {mail["Subject"] for mail in sent} == {"1 recordings of the last 7 days lack something"}
    assert all(recording_id in str(mail.get_body(("html", "plain")).get_content()) for mail in sent)


def test_send_bots(guest: LocalAirflow, recall: RunningSimulator) -> None:
    def bots() -> int:
        return sum(entry["method"] == "POST" and entry["path"] == "/api/v1/bot/" for entry in recall.journal("api"))

    before = bots()
    later = "2031-03-04T09:55:00Z"
    meetings = [
        {"meeting_url": "https://example.zoom.us/j/1", "join_at": later},
        {"meeting_url": "https://example.zoom.us/j/2", "join_at": later, "bot_name": "Notes"},
    ]
    run_id = run(guest, "example_send_bots", meetings=meetings)
    sent = {guest.xcom("example_send_bots", run_id, "send_bot", map_index=index) for index in (0, 1)}
    again = run(guest, "example_send_bots", meetings=meetings)
    assert {guest.xcom("example_send_bots", again, "send_bot", map_index=index) for index in (0, 1)} == sent
    assert (len(sent), bots() - before) == (2, 2)


def test_dags_of_the_page(guest: LocalAirflow, recall: RunningSimulator, recording: dict[str, Any]) -> None:
    assert len(whole_dags()) == 2
    assert int(result(guest, "asks_recall", run(guest, "asks_recall"), "count")) >= 1
    guest.wait_for_dag("after_archiving")
    meeting = recall.add_meeting(recordings=[{"artifacts": [{"parts": [person(7, "Ada", 9)]}]}])
    run(guest, "archive_meeting", bot_id=meeting["bot_id"])
    end = time.monotonic() + 600
    while not (found := guest.get("/dags/after_archiving/dagRuns")["dag_runs"]):
        assert time.monotonic() < end
        time.sleep(0.5)
    guest.wait("after_archiving", found[0]["dag_run_id"])
    (uri,) = result(guest, "after_archiving", found[0]["dag_run_id"], "name_them")
    assert f"recording={meeting['recordings'][0]['id']}" in uri
