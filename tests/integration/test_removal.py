"""Deleting at the source and purging a person in a real Airflow, with somebody's agreement through its API."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.at_rest import at_rest
from tests.chaos import oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.process import RunningSimulator
    from scripts.local_airflow import LocalAirflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

LONG_AGO = "2026-03-04T09:55:00+00:00"
EMAIL = "canary.ada@example.com"
PAGE = Path(__file__).parents[2] / "docs/delete.md"


def part(number: int, seed: int, email: str | None = None) -> dict[str, Any]:
    who = {"id": number, "name": f"Canary {number}", "email": email}
    return {"participant": who, "audio": {"seed": seed, "bytes": 3200}, "relative": seed}


@pytest.fixture
def archived(airflow: LocalAirflow, simulator: RunningSimulator) -> list[str]:
    """Two archived recordings with one person in both."""
    found = []
    for seed in (40, 50):
        parts = [part(1, seed, EMAIL), part(2, seed + 1)]
        ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": parts}]}])
        found.append(ids["recordings"][0]["id"])
    runs = [airflow.trigger("archive_meeting", {"recording_id": one}) for one in found]
    assert [airflow.wait("archive_meeting", run)["state"] for run in runs] == ["success", "success"]
    return found


@pytest.fixture
def enabled(airflow: LocalAirflow) -> Iterator[None]:
    """Deletion is switched on, and nothing has to be old for it."""
    airflow.wait_for_dag("delete_at_source")
    for key, value in (("recall_delete_at_source", "audio_separate"), ("recall_delete_after_hours", "0")):
        airflow.post("/variables", {"key": key, "value": value})
    yield
    airflow.patch("/variables/recall_delete_at_source", {"key": "recall_delete_at_source", "value": "off"})


def answer(airflow: LocalAirflow, dag_id: str, run_id: str, option: str) -> dict[str, Any]:
    """Answer the question that a run asks, and return the question.

    Airflow asks again if the answer comes while the process that asked is still ending, as no person's does.
    """
    path = f"/dags/{dag_id}/dagRuns/{run_id}"
    question: dict[str, Any] = {}
    for _ in range(600):
        time.sleep(1)
        state = states(airflow, dag_id, run_id).get("approve", set())
        asked = [one for one in airflow.get(f"{path}/hitlDetails")["hitl_details"] if not one["response_received"]]
        if asked and state == {"awaiting_input"}:
            time.sleep(3)
            question = dict(asked[0])
            airflow.patch(
                f"{path}/taskInstances/approve/-1/hitlDetails", {"chosen_options": [option], "params_input": {}}
            )
        elif question and state <= {"success", "skipped"}:
            break
    return question


def states(airflow: LocalAirflow, dag_id: str, run_id: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in airflow.task_instances(dag_id, run_id):
        found.setdefault(one["task_id"], set()).add(one["state"])
    return found


def deletions(simulator: RunningSimulator, recording_ids: list[str]) -> list[str]:
    """The artifacts of some recordings that the source was asked to delete, and did."""
    mine = {
        f"/api/v1/audio_separate/{artifact['id']}/"
        for one in recording_ids
        for artifact in simulator.control("GET", f"/truth/{one}")["artifacts"]
    }
    journal = simulator.journal("api")
    return [one["path"] for one in journal if one["method"] == "DELETE" and one["path"] in mine]


@pytest.mark.usefixtures("enabled")
def test_delete_after_proof_and_agreement(
    airflow: LocalAirflow, simulator: RunningSimulator, archive: Path, archived: list[str]
) -> None:
    dag, (first, second) = "delete_at_source", archived
    run = airflow.trigger(dag, {"recording_id": first, "plan": True})
    assert airflow.wait(dag, run)["state"] == "success"
    assert states(airflow, dag, run) == {
        "find_proven_recordings": {"success"},
        "approve": {"skipped"},
        "delete": {"skipped"},
    }
    (planned,) = airflow.xcom(dag, run, "find_proven_recordings")
    assert (planned["recording_id"], planned["parts"]) == (first, 2)

    run = airflow.trigger(dag, {"recording_id": first})
    question = answer(airflow, dag, run, "Reject")
    assert question["subject"] == "Delete 1 recordings at Recall?"
    assert f"| `{first}` | 2 |" in question["body"]
    assert airflow.wait(dag, run)["state"] == "success"
    assert states(airflow, dag, run)["delete"] == {"skipped"}
    assert deletions(simulator, archived) == []

    run = airflow.trigger(dag, {"recording_id": first})
    answer(airflow, dag, run, "Approve")
    assert airflow.wait(dag, run)["state"] == "success"
    assert len(deletions(simulator, [first])) == 1
    receipt = json.loads((archive / f"receipts/deleted/{first}.json").read_text())
    assert (receipt["approved_by"], receipt["scope"], len(receipt["parts"])) == ("admin", "audio_separate", 2)
    truth = simulator.control("GET", f"/truth/{first}")
    assert oracle.whole(oracle.Folder(archive), truth) == []

    # What is damaged stays, and the task says why.
    victim = next((archive / f"dt=2026-03-04/recording={second}").rglob("*.wav"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    run = airflow.trigger(dag, {"recording_id": second})
    answer(airflow, dag, run, "Approve")
    assert airflow.wait(dag, run)["state"] == "failed"
    assert airflow.xcom(dag, run, "delete", "error", 0)["code"] == "archive_damaged"
    assert deletions(simulator, [second]) == []

    # Deleted at the source, it is as settled as before.
    run = airflow.trigger("archive_meeting", {"recording_id": first})
    assert airflow.wait("archive_meeting", run)["state"] == "success"


def test_purge_a_person_for_good(
    airflow: LocalAirflow, simulator: RunningSimulator, archive: Path, archived: list[str], tmp_path: Path
) -> None:
    airflow.wait_for_dag("purge_participant")
    dag, request = "purge_participant", {"email": EMAIL.upper(), "created_from": "2026-03-04"}
    run = airflow.trigger(dag, request)
    assert airflow.wait(dag, run)["state"] == "success"
    planned = {one["recording_id"]: one for one in airflow.xcom(dag, run, "find_person")}
    assert set(archived) <= set(planned)
    assert all(planned[one]["participant_ids"] == [1] for one in archived)

    run = airflow.trigger(dag, {**request, "plan": False})
    question = answer(airflow, dag, run, "Approve")
    assert "everyone's" not in question["body"]
    assert airflow.wait(dag, run)["state"] == "success"
    for one in archived:
        folder = archive / f"dt=2026-03-04/recording={one}"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert {entry["participant_id"] for entry in manifest["parts"]} == {2}
        assert {entry["error_code"] for entry in manifest["missing"]} == {"purged"}
        assert not list(folder.glob("participant=1/**/*.wav"))
        again = airflow.trigger("archive_meeting", {"recording_id": one})
        assert airflow.wait("archive_meeting", again)["state"] == "success"
        assert not list(folder.glob("participant=1/**/*.wav"))
        assert "canary.ada" not in (folder / "manifest.json").read_text().lower()
    (receipt,) = (archive / "receipts/purged").glob("*.json")
    assert json.loads(receipt.read_text())["totals"]["recordings"] == len(planned)
    assert deletions(simulator, archived) == []

    for path in (archive / "receipts").rglob("*.json"):
        assert "canary.ada" not in path.read_text("utf-8", "replace").lower(), path
    # The address is among the run's params, which Airflow itself shows at level DEBUG; nobody else says it.
    lines = [
        json.loads(line)
        for path in (airflow.home / "logs").rglob("attempt=*.log")
        if dag in str(path)
        for line in path.read_text("utf-8", "replace").rpartition("\n")[0].splitlines()  # the last may grow yet
    ]
    assert lines
    assert {one.get("level") for one in lines if "canary.ada" in json.dumps(one).lower()} <= {"debug"}

    shown = run_docs_command("is_receipt_of", airflow, str(receipt), address=EMAIL.upper())
    assert "True" in shown.splitlines()


@pytest.mark.parametrize("dag", ["delete_at_source", "purge_participant"])
def test_the_commands_of_the_docs(airflow: LocalAirflow, dag: str) -> None:
    airflow.wait_for_dag(dag)
    before = by_hand(airflow, dag)
    commands = [one for one in docs_commands() if f"trigger {dag} " in one]
    assert commands
    for command in commands:
        words = shlex.split(command)
        with at_rest(airflow):
            subprocess.run(
                [sys.executable, "-m", *words], env=airflow.env, cwd=airflow.home, check=True, capture_output=True
            )
    new = by_hand(airflow, dag) - before
    assert len(new) == len(commands)
    for run_id in new:
        assert airflow.wait(dag, run_id)["state"] == "success"


def by_hand(airflow: LocalAirflow, dag: str) -> set[str]:
    """The runs of a Dag but for those of its schedule, which come when they come."""
    found = airflow.get(f"/dags/{dag}/dagRuns?limit=100")["dag_runs"]
    return {one["dag_run_id"] for one in found if one["run_type"] == "manual"}


def docs_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def run_docs_command(holding: str, airflow: LocalAirflow, *arguments: str, address: str) -> str:
    (command,) = [one for one in docs_commands() if holding in one]
    code = shlex.split(command)[2].replace("ada@example.com", address)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=airflow.env, check=True, capture_output=True, text=True
    )
    return done.stdout
