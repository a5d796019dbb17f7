"""### Archive what webhooks in a queue tell of.

An example to copy, for an Airflow that can't be reached from outside: a gateway puts Recall's webhooks into an SQS
queue, and this Dag watches it. Each message's signature is verified; `audio_separate.done` and `recording.done` start
`archive_meeting`, with the same run id as the webhook of the API server and the sweep, so nothing is archived twice.

It needs `aiobotocore` in the triggerer, the environment variable `RECALL_WEBHOOK_QUEUE` with the queue's URL where Dags
are parsed, and the set-up of `docs/webhooks.md`. It is paused when it is first seen, and watches nothing until then.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import Asset, AssetWatcher, dag

from include.provider.notices import notify_failure
from include.provider.queue import RecallQueuedWebhooksOperator, SqsQueueTrigger

QUEUE = os.environ.get("RECALL_WEBHOOK_QUEUE", "https://sqs.us-east-1.amazonaws.com/123456789012/recall-webhooks")
WEBHOOKS = Asset(
    "recall_webhooks", watchers=[AssetWatcher(name="recall_webhook_queue", trigger=SqsQueueTrigger(QUEUE))]
)


@dag(
    schedule=[WEBHOOKS],
    catchup=False,
    tags=["recall", "example"],
    doc_md=__doc__,
    is_paused_upon_creation=True,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "on_failure_callback": notify_failure,
    },
)
def example_archive_from_queue() -> None:
    RecallQueuedWebhooksOperator(task_id="start_archiving", queue_url=QUEUE)


example_archive_from_queue()
