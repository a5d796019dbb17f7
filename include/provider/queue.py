"""Webhooks that come through a queue, for an Airflow that nobody can reach from outside.

A gateway puts each request into the queue as it is, in an envelope (:func:`include.recall.webhooks.unwrap`); Airflow's
own trigger for SQS watches the queue; and the operator here proves each message and starts what the API server would.
A message leaves the queue only when it has been dealt with, so none is lost to a crash.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseEventTrigger

from include.errors import CodedError
from include.provider import awaited
from include.provider.assets import RECALL_MEETINGS
from include.provider.errors import RecallRetryPolicy, error_reported
from include.provider.hook import RecallHook
from include.provider.runs import AWAITED_ALREADY, EXISTS, STARTED
from include.provider.sweep_operators import Runs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from airflow.sdk import Context
    from airflow.triggers.base import TriggerEvent

SQS_TRIGGER = "airflow.providers.amazon.aws.triggers.sqs.SqsSensorTrigger"


class SqsQueueTrigger(BaseEventTrigger):
    """Watch a queue with the amazon provider's own trigger.

    This only stands for it while a Dag is parsed, which then needs neither the provider nor boto3; what the triggerer
    runs is the provider's, which needs ``aiobotocore``.

    :param queue_url: of the queue.
    :param aws_conn_id: Airflow connection of type ``aws``, ``aws_default`` by default.
    :param visibility_timeout: seconds until a message that was not dealt with is seen again, 600 by default.
    :param waiter_delay: seconds between two looks at an empty queue, 5 by default; each look waits up to 20 s itself.
    """

    def __init__(
        self,
        queue_url: str,
        aws_conn_id: str = "aws_default",
        visibility_timeout: int = 600,
        waiter_delay: int = 5,
    ) -> None:
        super().__init__()
        self.arguments = {
            "sqs_queue": queue_url,
            "aws_conn_id": aws_conn_id,
            "max_messages": 10,
            "wait_time_seconds": 20,
            "visibility_timeout": visibility_timeout,
            # Deleted on reception, they would be lost to a crash between there and the run.
            "delete_message_on_reception": False,
            "waiter_delay": waiter_delay,
        }

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Name the provider's trigger and its arguments."""
        return SQS_TRIGGER, dict(self.arguments)

    def run(self) -> AsyncIterator[TriggerEvent]:
        """Refuse: the triggerer runs what :meth:`serialize` names."""
        raise NotImplementedError


class RecallQueuedWebhooksOperator(BaseOperator):
    """Start the archiving that the queued webhooks of this run ask for, and take them out of the queue.

    What is not signed by an active secret is dropped and counted. What can't be dealt with now stays in the queue.

    :param queue_url: where the messages came from (templated).
    :param recall_conn_id: Airflow connection of type ``recall``, ``recall_default`` by default.
    :param aws_conn_id: Airflow connection of type ``aws``, ``aws_default`` by default.
    :return: how many messages came to what: ``started``, ``exists``, ``awaited``, ``noted`` (other events), or the code
        of the refusal.
    """

    template_fields: Sequence[str] = ("queue_url",)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        queue_url: str,
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        kwargs.setdefault("inlets", [RECALL_MEETINGS])
        super().__init__(**kwargs)
        self.queue_url = queue_url
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> dict[str, int]:
        """Deal with one message after the other."""
        from airflow.providers.amazon.aws.hooks.sqs import SqsHook

        from include.recall.errors import RecallConfigError

        with error_reported(context):
            keys = RecallHook(self.recall_conn_id).webhook_keys()
            if not keys:
                raise RecallConfigError(f"Airflow connection {self.recall_conn_id} has no extra.webhook_secrets")
            runs, rows = Runs(), context["asset_state_store"][RECALL_MEETINGS]
            client: Any = SqsHook(aws_conn_id=self.aws_conn_id).get_conn()
            outcomes: Counter[str] = Counter()
            for message in _messages(context):
                outcomes[self._deal_with(message["Body"], keys, runs, rows)] += 1
                client.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
            self.log.info("Webhooks of the queue: %s", dict(outcomes))
            return dict(outcomes)

    def _deal_with(self, envelope: str, keys: list[bytes], runs: Runs, rows: Any) -> str:
        from include.recall.errors import RecallEventError, RecallSignatureError
        from include.recall.webhooks import parse, read_headers, unwrap, verify

        try:
            headers, body, received = unwrap(envelope)
            claim = verify(read_headers(headers, received), body, keys)
            event = parse(body)
        except (RecallSignatureError, RecallEventError) as error:
            self.log.warning("A message is dropped: %s", error)
            return error.code
        if (recording_id := event.starts) is None:
            return "noted"
        waiting = [rows.get(subject) for subject in (event.bot_id, recording_id) if subject]
        if any(isinstance(run_id, str) and runs.is_under_way(run_id) for run_id in waiting):
            outcome = AWAITED_ALREADY
        elif runs.start(recording_id, "Started by a webhook from the queue."):
            outcome = STARTED
        elif runs.find(awaited.run_id_of(recording_id)) is not None:
            outcome = EXISTS
        else:
            # The message is seen again later.
            raise CodedError(f"no run starts for recording {recording_id}", code="not_started", permanent=False)
        self.log.info("Webhook %s: %s for recording %s: %s", claim.message_id, event.name, recording_id, outcome)
        return outcome


def _messages(context: Context) -> Iterator[dict[str, Any]]:
    """Yield the messages that made this run; those of a run that somebody started by hand are none."""
    for events in context["triggering_asset_events"].values():
        for event in events:
            yield from event.extra.get("payload", {}).get("message_batch", [])
