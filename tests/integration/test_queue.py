"""Webhooks through a queue to a real Airflow, whose triggerer watches it; skipped without aiobotocore."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from include.recall.webhooks import sign, signing_key
from tests.integration.conftest import QUEUE, WEBHOOK_SECRET

if TYPE_CHECKING:
    from pathlib import Path

    from include.simulator.process import RunningSimulator
    from scripts.local_airflow import LocalAirflow

pytest.importorskip("aiobotocore")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAG = "archive_meeting"
WATCHER = "example_archive_from_queue"


@pytest.fixture
def sqs(s3_endpoint: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("sqs", endpoint_url=s3_endpoint, region_name="us-east-1", **keys)
    client.create_queue(QueueName=QUEUE)
    return client


def envelope(recording_id: str, name: str = "audio_separate.done") -> str:
    body = json.dumps({"event": name, "data": {"recording": {"id": recording_id}, "bot": {"id": "b"}}}).encode()
    now = int(time.time())
    signature = sign("m", now, body, signing_key(WEBHOOK_SECRET))
    headers = {"webhook-id": "m", "webhook-timestamp": str(now), "webhook-signature": signature}
    return json.dumps({"received_ms": now * 1000, "headers": headers, "body": base64.b64encode(body).decode()})


def test_messages_start_the_same_runs(
    airflow: LocalAirflow, simulator: RunningSimulator, sqs: Any, s3_endpoint: str, archive: Path
) -> None:
    part = {"participant": {"id": 1, "name": "Ada"}, "audio": {"seed": 3, "bytes": 64_000}}
    url = sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"]
    made = [simulator.add_meeting(recordings=[{"artifacts": [{"parts": [part]}]}]) for _ in range(3)]
    ids = [one["recordings"][0]["id"] for one in made]
    sqs.send_message(QueueUrl=url, MessageBody=envelope(ids[0]))
    sqs.send_message(QueueUrl=url, MessageBody=envelope(ids[0], "recording.done"))
    sqs.send_message(QueueUrl=url, MessageBody=envelope(ids[1]).replace("webhook-id", "webhook-no"))
    airflow.wait_for_dag(WATCHER)
    deadline = time.monotonic() + 240
    for late, recording_id in enumerate((ids[0], ids[2])):
        if late:
            # The trigger ends with its first messages, and has to be back for these.
            sqs.send_message(QueueUrl=url, MessageBody=envelope(recording_id))
        run_id = f"recording__{recording_id}"
        while run_id not in {one["dag_run_id"] for one in airflow.get(f"/dags/{DAG}/dagRuns?limit=100")["dag_runs"]}:
            assert time.monotonic() < deadline, airflow.get(f"/dags/{WATCHER}/dagRuns")
            time.sleep(1)
        assert airflow.wait(DAG, run_id)["state"] == "success"
        assert list(archive.rglob(f"recording={recording_id}/manifest.json"))
    started = [one["dag_run_id"] for one in airflow.get(f"/dags/{DAG}/dagRuns?limit=100")["dag_runs"]]
    assert not [one for one in started if ids[1] in one]
    for run in airflow.get(f"/dags/{WATCHER}/dagRuns")["dag_runs"]:
        assert airflow.wait(WATCHER, run["dag_run_id"])["state"] == "success"
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    left = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    assert set(left.values()) == {"0"}
    airflow.patch(f"/dags/{WATCHER}", {"is_paused": True})
