"""Every Dag imports, parses without network, settings or connections, and keeps the house rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs in a process of its own: no connection, no Variable, no home of anybody's, and any socket is an error.
PARSE = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("a Dag file opened a socket")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(dag_folder="dags")
print(json.dumps({
    "errors": bag.import_errors,
    "dags": {
        dag_id: {
            "tags": sorted(dag.tags),
            "doc": dag.doc_md,
            "catchup": dag.catchup,
            "paused": dag.is_paused_upon_creation,
            "timetable": str(getattr(dag.timetable, "expression", None)),
            "paused": dag.is_paused_upon_creation,
            "retries": {task.task_id: task.retries for task in dag.tasks},
            "params": {name: dag.params.get_param(name).dump() for name in dag.params},
            "edges": sorted([task.task_id, other] for task in dag.tasks for other in task.downstream_task_ids),
            "rules": {task.task_id: str(getattr(task.trigger_rule, "value", task.trigger_rule)) for task in dag.tasks},
            "mapped": sorted(task.task_id for task in dag.tasks if task.is_mapped),
        }
        for dag_id, dag in bag.dags.items()
    },
}, default=str))
"""


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> dict:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("home")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    done = subprocess.run(
        [sys.executable, "-c", PARSE], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_import_errors(bag: dict) -> None:
    assert bag["errors"] == {}
    ours = {
        "archive_meeting",
        "delete_at_source",
        "example_on_recording_archived",
        "purge_participant",
        "sweep_recordings",
    }
    assert ours <= set(bag["dags"])


def test_house_rules(bag: dict) -> None:
    for dag_id, dag in bag["dags"].items():
        assert dag["tags"], dag_id
        assert dag["doc"], dag_id
        assert dag["catchup"] is False, dag_id
        assert all(retries >= 2 for retries in dag["retries"].values()), dag_id


def test_what_works_on_the_archive_is_off_until_it_is_switched_on(bag: dict) -> None:
    for dag_id in ("derive_audio", "example_on_recording_archived", "example_talk_time", "example_transcribe"):
        assert bag["dags"][dag_id]["paused"] is True, dag_id
    dag = bag["dags"]["derive_audio"]
    assert (dag["edges"], dag["mapped"]) == ([["find_archived", "make"]], ["make"])


def test_archive_meeting_reads_like_its_sentence(bag: dict) -> None:
    dag = bag["dags"]["archive_meeting"]
    for edge in (
        ["send_bot", "wait_for_recordings"],
        ["wait_for_recordings", "list_participant_audio"],
        ["list_participant_audio", "archive_participant"],
        ["archive_participant", "settle"],
    ):
        assert edge in dag["edges"]
    assert dag["mapped"] == ["archive_participant", "settle"]
    assert dag["rules"]["settle"] == "all_done"
    assert dag["rules"]["wait_for_recordings"] == "none_failed"


def test_the_sweep_runs_by_itself_every_hour(bag: dict) -> None:
    dag = bag["dags"]["sweep_recordings"]
    assert dag["paused"] is False
    assert dag["edges"] == [["find_recordings", "start_archiving"]]
    assert dag["timetable"] == "0 * * * *"


def test_what_removes_something_is_off_until_somebody_switches_it_on(bag: dict) -> None:
    for dag_id, steps in {
        "delete_at_source": ["find_proven_recordings", "approve", "delete"],
        "purge_participant": ["find_person", "approve", "purge", "write_receipt"],
    }.items():
        dag = bag["dags"][dag_id]
        assert dag["paused"] is True
        assert all(list(edge) in dag["edges"] for edge in zip(steps, steps[1:], strict=False))
        assert set(dag["rules"].values()) == {"all_success"}
    assert bag["dags"]["purge_participant"]["params"]["plan"]["value"] is True


def test_the_archive_is_verified_every_week(bag: dict) -> None:
    dag = bag["dags"]["verify_archive"]
    assert dag["paused"] is False
    assert dag["timetable"] == "0 2 * * 0"
    assert dag["mapped"] == ["verify"]
    assert dag["rules"]["report"] == "all_done"
    assert {("list_days", "verify"), ("verify", "report")} <= {tuple(edge) for edge in dag["edges"]}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("recording_id", ["7C0E1B52-6C1D-4B77-8D52-3E2C9A6B4F10", None], ["../x", 5]),
        ("from", ["2026-03-04", None], ["yesterday", "2026-03-04\n", "2026-3-4", 20260304]),
        ("to", ["2026-03-04", None], ["2026-03-04T00:00:00Z"]),
        ("mode", ["full", "checksum"], ["quick", "", None]),
        ("repair", [True, False], ["yes", None, 1]),
    ],
)
def test_params_of_verify_archive(bag: dict, name: str, good: list, bad: list) -> None:
    assert all(accepts(bag, name, value, "verify_archive") for value in good)
    assert not any(accepts(bag, name, value, "verify_archive") for value in bad)


BAD = {
    "bot_id": ["../../x", "x; id", "a\nb", "a\n", "x" * 65, "é", 5, ["a"], " a"],
    "recording_id": ["../../x", "x/y", "x" * 10_000, True, {"a": 1}],
    "meeting_url": ["http://meet.example/x", "javascript:alert(1)", "https://a b", "https://x\n", "x" * 10, 3],
    "bot_name": ["x" * 101, 7],
    "join_at": ["tomorrow", "2026-03-04", "2026-03-04T09:55:00", "2026-03-04T09:55:00Z\n", 5],
}
GOOD = {
    "bot_id": [None, "", "b0b3d1f8-5f3a-4a3e-9c1d-2f7a8e6c5d40"],
    "recording_id": [None, "", "7C0E1B52-6C1D-4B77-8D52-3E2C9A6B4F10"],
    "meeting_url": [None, "", "https://teams.microsoft.com/l/meetup-join/19%3ameeting_EXAMPLE%40thread.v2/0?a=b#c"],
    "bot_name": [None, "", "Notes {{ bot }} 🎙"],
    "join_at": [None, "2026-03-04T09:55:00Z", "2026-03-04T09:55:00.123456+02:00"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_param_is_refused(bag: dict, name: str, value: object) -> None:
    assert not accepts(bag, name, value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_param_is_accepted(bag: dict, name: str, value: object) -> None:
    assert accepts(bag, name, value)


def accepts(bag: dict, name: str, value: object, dag_id: str = "archive_meeting") -> bool:
    """Validate as the API server does."""
    import jsonschema

    schema = bag["dags"][dag_id]["params"][name]["schema"]
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).is_valid(value)
