"""A whole Airflow, the simulator and an S3 server, each as real processes, once for all tests here."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests

from include.simulator.process import RunningSimulator, running_simulator
from scripts.local_airflow import LocalAirflow
from tests.moto_server import moto_server

if TYPE_CHECKING:
    from collections.abc import Iterator

API_KEY = "canary-api-key-5f3b1c"
STORAGE_SECRET = "canary-storage-secret-9d2e"
WEBHOOK_SECRET = "whsec_Y2FuYXJ5LXdlYmhvb2stc2VjcmV0LTdhMWM="
BUCKET = "recordings"
QUEUE = "recall-webhooks"
VIEWER = "viewer"


@pytest.fixture(scope="session")
def simulator() -> Iterator[RunningSimulator]:
    with running_simulator("--api-key", API_KEY, "--no-rate-limit", "--page-size", "2") as running:
        yield running


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def s3(s3_endpoint: str) -> Any:
    client = boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the file:// archive that runs use unless a test says otherwise."""
    return tmp_path_factory.mktemp("archive with a space")


@pytest.fixture(scope="session")
def airflow(
    simulator: RunningSimulator, s3_endpoint: str, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    aws = {
        "conn_type": "aws",
        "login": "test",
        "password": STORAGE_SECRET,
        "extra": {"endpoint_url": s3_endpoint, "region_name": "us-east-1"},
    }
    recall = {**simulator.connection, "extra": {**simulator.connection["extra"], "webhook_secrets": [WEBHOOK_SECRET]}}
    env = {
        "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(recall),
        "RECALL_WEBHOOK_QUEUE": f"{s3_endpoint}/123456789012/{QUEUE}",
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws),
        "AIRFLOW_VAR_RECALL_POLL_SECONDS": "1",
        "AIRFLOW_VAR_RECALL_REQUEST_SHARE": "100",
        # On a Sunday, Airflow would start the run of that night as soon as the Dag is switched on.
        "AIRFLOW_VAR_RECALL_VERIFY_SCHEDULE": "off",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"admin:admin,{VIEWER}:viewer",
    }
    # DEBUG, so that whatever a library may log is in the logs that are searched for secrets.
    with LocalAirflow(tmp_path_factory.mktemp("airflow"), env, log_level="DEBUG") as running:
        running.wait_for_dag("archive_meeting")
        set_archive(running, archive.as_uri())
        yield running


@pytest.fixture(scope="session")
def viewer(airflow: LocalAirflow) -> dict[str, str]:
    """The headers of somebody who may look at everything and do nothing."""
    passwords = json.loads((airflow.home / "passwords.json").read_text("utf-8"))
    login = {"username": VIEWER, "password": passwords[VIEWER]}
    reply = requests.post(f"{airflow.url}/auth/token", json=login, timeout=30)
    return {"Authorization": f"Bearer {reply.json()['access_token']}"}


def files_below(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Read all files of a folder in which somebody works: a database's journal comes and goes."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()


def set_archive(airflow: LocalAirflow, uri: str) -> None:
    """Point the deployment at another archive."""
    body = {"key": "recall_archive_uri", "value": uri}
    known = airflow.get("/variables")["variables"]
    if any(one["key"] == body["key"] for one in known):
        airflow.patch("/variables/recall_archive_uri", body)
    else:
        airflow.post("/variables", body)
