"""A run that fails in a real Airflow, and the mail about it; one with gaps, and its mail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.mail_sink import MailSink, mail_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.process import RunningSimulator
    from scripts.local_airflow import LocalAirflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAG = "archive_meeting"
LONG_AGO = "2026-03-04T09:55:00+00:00"


@pytest.fixture
def mails(airflow: LocalAirflow) -> Iterator[MailSink]:
    """What this deployment's people are sent."""
    notifiers = [
        {"notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier", "kwargs": {"to": "o@example.com"}}
    ]
    with mail_sink() as sink:
        connection = {**sink.connection, "extra": json.dumps(sink.connection["extra"])}
        airflow.post("/connections", {"connection_id": "smtp_default", **connection})
        airflow.post("/variables", {"key": "recall_notifiers", "value": json.dumps(notifiers)})
        yield sink
        airflow.patch("/variables/recall_notifiers", {"key": "recall_notifiers", "value": "[]"})


def archive(airflow: LocalAirflow, simulator: RunningSimulator, **meeting: Any) -> tuple[str, dict[str, Any]]:
    ids = simulator.add_meeting(created_at=LONG_AGO, **meeting)
    run_id = airflow.trigger(DAG, {"bot_id": ids["bot_id"]})
    airflow.wait(DAG, run_id)
    return run_id, ids


def text_of(mail: Any) -> str:
    return str(mail.get_body(("html", "plain")).get_content())


def test_one_message_for_each_meeting(airflow: LocalAirflow, simulator: RunningSimulator, mails: MailSink) -> None:
    part = {"participant": {"id": 100, "name": "Ada Example"}, "audio": {"seed": 1, "bytes": 3200}}
    gone = {"status": "failed", "parts": []}
    archive(airflow, simulator, recordings=[{"artifacts": [{"parts": [part]}]}])
    assert mails.mails == []

    run_id, ids = archive(airflow, simulator, recordings=[{"artifacts": [gone]}])
    (failed,) = mails.mails
    assert failed["Subject"] == f"{DAG} failed for bot {ids['bot_id']}: media_failed"
    assert f"{airflow.url}/dags/{DAG}/runs/{quote(run_id)}" in text_of(failed)

    run_id, ids = archive(airflow, simulator, title="Ada", recordings=[{"artifacts": [gone, {"parts": [part]}]}])
    gaps = mails.mails[1]
    assert len(mails.mails) == 2
    recording_id = ids["recordings"][0]["id"]
    assert gaps["Subject"] == f"Recording {recording_id} is archived with gaps"
    assert f"{airflow.url}/recall/archive/dt=2026-03-04/recording={recording_id}/" in text_of(gaps)
    assert "Ada" not in text_of(gaps)

    # Every participant's copy is refused: the settling task says so, once.
    fault = {"origin": "media", "times": None, "action": {"status": 403}}
    simulator.add_faults(fault)
    try:
        _, ids = archive(
            airflow, simulator, recordings=[{"artifacts": [{"parts": [part, {**part, "participant": {"id": 101}}]}]}]
        )
    finally:
        simulator.control("DELETE", "/faults")
    assert len(mails.mails) == 3
    assert mails.mails[2]["Subject"] == f"{DAG} failed for recording {ids['recordings'][0]['id']}: parts_owed"
