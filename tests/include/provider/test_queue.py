"""The route through a queue: an SQS server on a socket, the provider's own trigger, and the operator."""

from __future__ import annotations

import asyncio
import base64
import importlib
import inspect
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.sdk import AssetWatcher

from include.errors import CodedError
from include.provider import queue
from include.provider.assets import RECALL_MEETINGS
from include.provider.queue import RecallQueuedWebhooksOperator, SqsQueueTrigger
from include.recall.errors import RecallConfigError
from include.recall.webhooks import sign, signing_key
from tests.moto_server import moto_server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()
STRANGER = "whsec_" + base64.b64encode(os.urandom(32)).decode()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def sqs(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("sqs", endpoint_url=endpoint, region_name="us-east-1", **keys)
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    aws = {"conn_type": "aws", "login": "test", "password": "test", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(aws))
    recall = {"conn_type": "recall", "password": "key", "extra": {"webhook_secrets": [SECRET]}}
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", json.dumps(recall))
    yield client
    client.close()


@pytest.fixture
def queue_url(sqs: Any) -> Iterator[str]:
    url = sqs.create_queue(QueueName="recall-webhooks")["QueueUrl"]
    yield url
    sqs.delete_queue(QueueUrl=url)


class FakeRuns:
    """The runs there are, in place of Airflow's."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.broken = False

    def start(self, recording_id: str, note: str) -> bool:
        if self.broken or f"recording__{recording_id}" in self.states:
            return False
        self.states[f"recording__{recording_id}"] = "queued"
        return True

    def is_under_way(self, run_id: str) -> bool:
        return self.states.get(run_id) in {"queued", "running"}

    def find(self, run_id: str) -> Any:
        return self.states.get(run_id)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    fake = FakeRuns()
    monkeypatch.setattr(queue, "Runs", lambda: fake)
    return fake


def wrapped(name: str = "recording.done", recording: Any = "rec-1", secret: str = SECRET, late: float = 0) -> str:
    """What the gateway's mapping template makes of a request."""
    body = json.dumps({"event": name, "data": {"recording": {"id": recording}, "bot": {"id": "bot-1"}}}).encode()
    now = int(time.time())
    sent = {
        "webhook-id": "m1",
        "webhook-timestamp": str(now),
        "svix-id": "",
        "svix-timestamp": "",
        "svix-signature": "",
    }
    sent["webhook-signature"] = sign("m1", now, body, signing_key(secret))
    whole = {"received_ms": int((now + late) * 1000), "headers": sent, "body": base64.b64encode(body).decode()}
    return json.dumps(whole)


def look(url: str) -> list[dict[str, Any]]:
    """Let the provider's own trigger look into the queue once, with the arguments that it is given in the triggerer."""
    path, arguments = SqsQueueTrigger(url).serialize()
    module, _, name = path.rpartition(".")
    trigger = getattr(importlib.import_module(module), name)(**{**arguments, "wait_time_seconds": 0})
    client = trigger.hook.get_conn()

    class Awaitable:
        """The same client, as aiobotocore has it."""

        async def receive_message(self, **options: Any) -> Any:
            return client.receive_message(**options)

    return asyncio.run(trigger.poke(Awaitable()))


def deal_with(url: str, messages: list[dict[str, Any]], rows: dict[str, str] | None = None) -> dict[str, int]:
    event = SimpleNamespace(extra={"from_trigger": True, "payload": {"status": "success", "message_batch": messages}})
    context: Any = {
        "triggering_asset_events": {"recall_webhooks": [event]},
        "asset_state_store": {RECALL_MEETINGS: rows or {}},
        "ti": SimpleNamespace(xcom_push=lambda **_: None),
    }
    return RecallQueuedWebhooksOperator(task_id="start", queue_url=url).execute(context)


def left(sqs: Any, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(value) for value in found.values())


def test_it_stands_for_the_provider_s_trigger() -> None:
    trigger = SqsQueueTrigger("https://queue", visibility_timeout=30)
    assert AssetWatcher(name="x", trigger=trigger).trigger is trigger
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert set(arguments) <= set(inspect.signature(cls).parameters)
    rebuilt = cls(**arguments).serialize()
    assert rebuilt[0] == path
    assert arguments.items() <= rebuilt[1].items()
    assert arguments["delete_message_on_reception"] is False


def test_messages_start_runs_and_leave_the_queue(sqs: Any, queue_url: str, runs: FakeRuns) -> None:
    for body in (wrapped(), wrapped("audio_separate.done"), wrapped("bot.done"), wrapped(recording="rec-2", late=250)):
        sqs.send_message(QueueUrl=queue_url, MessageBody=body)
    messages = look(queue_url)
    assert left(sqs, queue_url) == 4
    assert deal_with(queue_url, messages) == {"started": 2, "exists": 1, "noted": 1}
    assert set(runs.states) == {"recording__rec-1", "recording__rec-2"}
    assert left(sqs, queue_url) == 0


def test_what_is_forged_is_dropped(sqs: Any, queue_url: str, runs: FakeRuns) -> None:
    altered = json.loads(wrapped())
    altered["body"] = base64.b64encode(base64.b64decode(altered["body"]).replace(b"rec-1", b"rec-9")).decode()
    for body in (wrapped(secret=STRANGER), wrapped(late=400), json.dumps(altered), "{}", wrapped(recording="../x")):
        sqs.send_message(QueueUrl=queue_url, MessageBody=body)
    assert deal_with(queue_url, look(queue_url)) == {
        "webhook_forged": 2,
        "webhook_stale": 1,
        "webhook_unreadable": 2,
    }
    assert runs.states == {}
    assert left(sqs, queue_url) == 0


def test_a_run_that_waits_for_the_bot_is_not_doubled(sqs: Any, queue_url: str, runs: FakeRuns) -> None:
    runs.states["manual__1"] = "running"
    sqs.send_message(QueueUrl=queue_url, MessageBody=wrapped())
    assert deal_with(queue_url, look(queue_url), {"bot-1": "manual__1"}) == {"awaited": 1}
    runs.states["manual__1"] = "success"
    sqs.send_message(QueueUrl=queue_url, MessageBody=wrapped())
    assert deal_with(queue_url, look(queue_url), {"bot-1": "manual__1"}) == {"started": 1}


def test_what_can_not_start_now_is_seen_again(sqs: Any, queue_url: str, runs: FakeRuns) -> None:
    runs.broken = True
    sqs.send_message(QueueUrl=queue_url, MessageBody=wrapped())
    (message,) = look(queue_url)
    with pytest.raises(CodedError) as caught:
        deal_with(queue_url, [message])
    assert (caught.value.code, caught.value.permanent) == ("not_started", False)
    assert look(queue_url) == []
    runs.broken = False
    # As if its time had passed, however long this test takes.
    sqs.change_message_visibility(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    assert deal_with(queue_url, look(queue_url)) == {"started": 1}
    assert left(sqs, queue_url) == 0


def test_without_a_secret_everything_stays_in_the_queue(
    sqs: Any, queue_url: str, runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", json.dumps({"conn_type": "recall", "password": "key"}))
    sqs.send_message(QueueUrl=queue_url, MessageBody=wrapped())
    with pytest.raises(RecallConfigError, match="webhook_secrets"):
        deal_with(queue_url, look(queue_url))
    assert left(sqs, queue_url) == 1


def test_the_mapping_template_of_the_documentation_makes_the_envelope(sqs: Any, queue_url: str, runs: FakeRuns) -> None:
    """Rendered by the few rules of API Gateway's template language that it uses."""
    text = (ROOT / "docs" / "webhooks.md").read_text("utf-8")
    (template,) = re.findall(r"```velocity\n(.*?)```", text, re.DOTALL)
    sent = json.loads(wrapped())
    body = base64.b64decode(sent["body"])
    functions = {
        r"\$util\.escapeJavaScript\(\$input\.params\('([a-z-]+)'\)\)": lambda found: sent["headers"][found[1]],
        r"\$util\.base64Encode\(\$input\.body\)": lambda _: base64.b64encode(body).decode(),
        r"\$context\.requestTimeEpoch": lambda _: str(sent["received_ms"]),
    }
    variables: dict[str, str] = {}
    for line in template.strip().splitlines():
        assigned = re.fullmatch(r"#set\(\$(\w) = ([\"'])(.*)\2\)", line.strip())
        rendered = assigned[3] if assigned else line.strip()
        for pattern, function in functions.items():
            rendered = re.sub(pattern, function, rendered)
        rendered = re.sub(r"\$(?:\{([a-z])\}|([a-z])\b)", lambda one: variables[one[1] or one[2]], rendered)
        if assigned:
            variables[assigned[1]] = rendered
    fields = dict(field.split("=", 1) for field in rendered.split("&", 2))
    envelope = re.fullmatch(r"\$util\.urlEncode\((.*)\)", fields["MessageBody"])
    assert envelope is not None
    assert fields["Action"] == "SendMessage"
    sqs.send_message(QueueUrl=queue_url, MessageBody=envelope[1])
    assert deal_with(queue_url, look(queue_url)) == {"started": 1}


def test_a_run_started_by_hand_does_nothing(sqs: Any, queue_url: str, runs: FakeRuns) -> None:
    assert deal_with(queue_url, []) == {}
