"""### Delete at Recall what is proven to be in the archive.

Off by default: it does nothing until the Variable `recall_delete_at_source` says what to delete (`audio_separate` or
`recording`) and this Dag is switched on. Each day it finds settled recordings that Recall still holds, asks a person
(unless `recall_delete_needs_approval` is false), and then, recording by recording, reads every object of the archive,
compares every part that Recall lists at that moment, deletes, and leaves a receipt in the archive.

`plan` lists what would be deleted, also while deletion is off, and changes nothing. What is deleted can't be had again.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.sdk import dag

from include.provider.errors import RecallRetryPolicy
from include.provider.notices import notify_failure
from include.provider.params import delete_at_source_params
from include.provider.removal_operators import (
    APPROVAL_WAIT,
    RecallApprovalOperator,
    RecallDeleteAtSourceOperator,
    RecallFindDeletableOperator,
)


@dag(
    schedule="17 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    tags=["recall", "delete"],
    params=delete_at_source_params(),
    doc_md=__doc__,
    is_paused_upon_creation=True,
    max_active_runs=8,  # a plan must not wait behind a question that nobody has answered yet
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=30),
        "retry_policy": RecallRetryPolicy(),
        "on_failure_callback": notify_failure,
    },
)
def delete_at_source() -> None:
    found = RecallFindDeletableOperator(
        task_id="find_proven_recordings",
        recording_id="{{ params.recording_id or '' }}",
        created_from="{{ params.created_from or '' }}",
        created_until="{{ params.created_until or '' }}",
        plan="{{ params.plan }}",
    )

    approval = RecallApprovalOperator(
        task_id="approve",
        found=found.output,
        about=found.output["about"],
        subject="Delete {{ task.found | length }} recordings at Recall?",
        body="{{ task.about.summary }}",
        defaults="Reject",
        response_timeout=APPROVAL_WAIT,
    )

    deleted = RecallDeleteAtSourceOperator.partial(
        task_id="delete",
        about=found.output["about"],
        approval=approval.output,
        map_index_template="{{ task_label }}",
        max_active_tis_per_dagrun=4,
    ).expand(candidate=found.output)

    found >> approval >> deleted


delete_at_source()
