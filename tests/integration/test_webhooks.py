"""Webhooks from the simulator to a real Airflow: one run for each recording, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from include.recall.webhooks import sign, signing_key
from tests.at_rest import at_rest
from tests.integration.conftest import WEBHOOK_SECRET, files_below
from tests.load.webhooks import Client, Outcome, count_of, play_forged, play_mixed, play_replays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from include.simulator.process import RunningSimulator
    from scripts.local_airflow import LocalAirflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAG = "archive_meeting"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def told(airflow: LocalAirflow, simulator: RunningSimulator) -> Iterator[None]:
    """Let the simulator, which knows nothing of other tests' meetings, tell what happens, and try again soon."""
    simulator.reset()
    tell(simulator, f"{airflow.url}/recall/webhooks")
    yield
    tell(simulator, "")


def tell(simulator: RunningSimulator, url: str) -> None:
    settings = {"webhook_url": url, "webhook_secrets": [WEBHOOK_SECRET], "webhook_retry_speed": 600}
    simulator.control("POST", "/settings", settings)


def meeting(simulator: RunningSimulator, **more: Any) -> tuple[str, str]:
    """Make a meeting of one part; give the ids of its bot and its recording."""
    part = {"participant": {"id": 1, "name": "Ada"}, "audio": {"seed": 3, "bytes": 64_000}}
    ids = simulator.add_meeting(recordings=[{"artifacts": [{"parts": [part]}]}], **more)
    return ids["bot_id"], ids["recordings"][0]["id"]


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.25)


def deliveries(simulator: RunningSimulator, bot_id: str) -> list[dict[str, Any]]:
    return [one for one in simulator.control("GET", "/webhooks")["deliveries"] if one["bot_id"] == bot_id]


def runs_of(airflow: LocalAirflow, recording_id: str) -> list[dict[str, Any]]:
    found = airflow.get(f"/dags/{DAG}/dagRuns?limit=100&order_by=-id")["dag_runs"]
    return [one for one in found if recording_id in (one["dag_run_id"] + json.dumps(one["conf"]))]


def test_a_finished_meeting_is_archived_by_one_run(
    airflow: LocalAirflow, simulator: RunningSimulator, archive: Path
) -> None:
    rules = [{"event": "^audio_separate.done$", "copies": 3}, {"event": "^bot.done$", "forge": True}]
    simulator.control("POST", "/webhooks/faults", rules)
    bot_id, recording_id = meeting(simulator)
    wait(lambda: bool(runs_of(airflow, recording_id)))
    run = airflow.wait(DAG, f"recording__{recording_id}")
    assert (run["state"], run["conf"]["recording_id"]) == ("success", recording_id)
    assert list(archive.rglob(f"recording={recording_id}/manifest.json"))
    wait(lambda: any(one["status"] == 200 for one in deliveries(simulator, bot_id) if one["event"] == "bot.done"))
    statuses = Counter(one["status"] for one in deliveries(simulator, bot_id))
    # A busy server's answer may come too late for the sender, or put it off; then it sends again.
    unanswered = statuses.pop(None, 0) + statuses.pop(503, 0)
    assert set(statuses) <= {200, 202, 401}
    assert statuses[202] == 1 or unanswered
    assert [one["status"] for one in deliveries(simulator, bot_id) if one["fault"] == "forged"] in ([401], [None])
    assert len(runs_of(airflow, recording_id)) == 1


def test_a_run_that_waits_for_the_bot_is_not_doubled(airflow: LocalAirflow, simulator: RunningSimulator) -> None:
    bot_id, recording_id = meeting(simulator, live=True)
    run_id = airflow.trigger(DAG, {"bot_id": bot_id})
    waiting = {"wait_for_recordings": "deferred"}
    wait(
        lambda: waiting.items() <= {one["task_id"]: one["state"] for one in airflow.task_instances(DAG, run_id)}.items()
    )
    # The trigger hears of the end after the webhooks were taken: it can't have ended the run before.
    simulator.add_faults({"origin": "api", "times": None, "action": {"status": 503}})
    simulator.advance(3600)
    starting = {"recording.done", "audio_separate.done"}
    wait(lambda: starting <= {one["event"] for one in deliveries(simulator, bot_id) if one["status"] == 200})
    simulator.control("DELETE", "/faults")
    assert airflow.wait(DAG, run_id)["state"] == "success"
    assert runs_of(airflow, recording_id) == []


def test_a_meeting_without_separate_audio_is_no_failure(airflow: LocalAirflow, simulator: RunningSimulator) -> None:
    config = {"recording_config": {"video_mixed_mp4": {}}, "recordings": [{"artifacts": []}]}
    recording_id = simulator.add_meeting(**config)["recordings"][0]["id"]
    wait(lambda: bool(runs_of(airflow, recording_id)))
    assert airflow.wait(DAG, f"recording__{recording_id}")["state"] == "success"
    states = {one["state"] for one in airflow.task_instances(DAG, f"recording__{recording_id}")}
    assert states == {"skipped"}


def test_what_comes_while_the_dag_is_paused_comes_again(airflow: LocalAirflow, simulator: RunningSimulator) -> None:
    airflow.patch(f"/dags/{DAG}", {"is_paused": True})
    try:
        bot_id, recording_id = meeting(simulator)
        wait(lambda: 503 in {one["status"] for one in deliveries(simulator, bot_id)})
        assert runs_of(airflow, recording_id) == []
    finally:
        airflow.patch(f"/dags/{DAG}", {"is_paused": False})

    def about_the_bot() -> list[dict[str, Any]]:
        return [one for one in deliveries(simulator, bot_id) if one["event"].startswith("bot.")]

    events = {one["event"] for one in about_the_bot()}
    assert events
    wait(lambda: {one["event"] for one in about_the_bot() if one["status"] == 200} == events)
    assert {one["status"] for one in about_the_bot()} <= {200, None}
    wait(lambda: 202 in {one["status"] for one in deliveries(simulator, bot_id)})
    assert airflow.wait(DAG, f"recording__{recording_id}")["state"] == "success"


def test_what_comes_while_the_server_is_away_comes_again(airflow: LocalAirflow, simulator: RunningSimulator) -> None:
    """And a replay after its restart starts nothing: what was started is in the database, not in the server."""
    _, first = meeting(simulator)
    wait(lambda: bool(runs_of(airflow, first)))
    airflow.wait(DAG, f"recording__{first}")
    airflow.kill("api-server")
    bot_id, recording_id = meeting(simulator)
    wait(lambda: bool(deliveries(simulator, bot_id)))
    airflow.start_component("api-server")
    airflow.wait_until_healthy()
    wait(lambda: bool(runs_of(airflow, recording_id)))
    assert airflow.wait(DAG, f"recording__{recording_id}")["state"] == "success"
    assert None in {one["status"] for one in deliveries(simulator, bot_id)}
    body = json.dumps({"event": "recording.done", "data": {"recording": {"id": first}}}).encode()
    now = int(time.time())
    headers = {"svix-id": "m", "svix-timestamp": str(now)}
    headers["svix-signature"] = sign("m", now, body, signing_key(WEBHOOK_SECRET))
    for _ in range(5):
        reply = requests.post(f"{airflow.url}/recall/webhooks", body, headers=headers, timeout=30)
        assert (reply.status_code, reply.json()) == (200, {"outcome": "exists"})
    assert len(runs_of(airflow, first)) == 1


def test_nobody_needs_airflow_s_login_and_nobody_gets_in_by_it(airflow: LocalAirflow, viewer: dict[str, str]) -> None:
    body = {"event": "recording.done", "data": {"recording": {"id": "x"}}}
    for headers in ({}, viewer):
        reply = requests.post(f"{airflow.url}/recall/webhooks", json=body, headers=headers, timeout=30)
        assert (reply.status_code, reply.json()) == (401, {"error": "webhook_unsigned"})


def test_little_forged_traffic_and_few_replays(airflow: LocalAirflow) -> None:
    """The load script, in small."""
    key, before = signing_key(WEBHOOK_SECRET), count_of(airflow)

    async def play() -> tuple[Outcome, Outcome, Outcome, Outcome]:
        client = Client(airflow.url)
        forged, kinds = await play_forged(client, key, 600)
        assert len(kinds) == 15
        replays = await play_replays(client, key, 60, "replayed")
        mixed = await play_mixed(client, key, seconds=5, genuine=10, forged=100, start_every=50, tag="mixed")
        await client.close()
        return forged, replays, *mixed

    forged, replays, genuine, others = asyncio.run(play())
    assert forged.statuses == {401: 600}
    # Where starting the run took a busy server too long, it was put off and found started at the next attempt.
    for outcome, count in ((replays, 61), (genuine, 50)):
        assert set(outcome.statuses) <= {200, 202}
        assert (outcome.accepted, outcome.statuses[202] <= 1) == (count, True)
    assert others.accepted == 0
    assert count_of(airflow) - before == 2
    for recording_id in ("replayed", "mixed-0"):
        # Nothing of the sort is at the source.
        assert airflow.wait(DAG, f"recording__{recording_id}")["state"] == "failed"


def test_too_much_is_refused(airflow: LocalAirflow) -> None:
    too_large = requests.post(f"{airflow.url}/recall/webhooks", b"x" * 300_000, timeout=30)
    assert too_large.status_code == 413


def test_the_commands_of_the_documentation(airflow: LocalAirflow) -> None:
    """They write to the database; the connection of the other tests is in the environment, and comes before it."""
    text = (ROOT / "docs" / "webhooks.md").read_text("utf-8")
    commands = re.findall(r"^ +(airflow .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**airflow.env, "PATH": path, "RECALL_API_KEY": "from-the-documentation"}
    for command in commands:
        with at_rest(airflow):
            done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    kept = airflow.get("/connections/recall_default")
    assert (kept["conn_type"], "webhook_secrets" in kept["extra"]) == ("recall", True)


def test_the_secret_is_nowhere(airflow: LocalAirflow) -> None:
    needle = WEBHOOK_SECRET.removeprefix("whsec_").encode()
    assert [str(path) for path, data in files_below(airflow.home) if needle in data] == []
