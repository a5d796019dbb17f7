"""### Verify the archive.

Reads every object again and compares it with its recording's manifest, finds what is missing, damaged, extra or left
behind, and repairs what Recall still has: damaged bytes are replaced by proven ones, and nothing else is touched. It
leaves a report beside the recordings, which the last task's button "Report" shows.

Every Sunday it looks at the whole archive. Start it by hand for a range of days or one recording. `mode` is `full`
(every byte is read) or `checksum` (the checksums that the store itself computed are trusted, where it has any). A run
that leaves something damaged fails with the code `archive_damaged`.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from include.provider.errors import RecallRetryPolicy
from include.provider.params import verify_archive_params
from include.provider.verify_operators import (
    RecallPlanVerificationOperator,
    RecallReportVerificationOperator,
    RecallVerifyArchiveOperator,
    notify_failure_untold,
    verify_schedule,
)


@dag(
    # Without a start_date, a new deployment makes up for last Sunday only in the first tenth of the week after it.
    schedule=verify_schedule(),
    catchup=False,
    max_active_runs=1,
    tags=["recall", "verify"],
    params=verify_archive_params(),
    doc_md=__doc__,
    is_paused_upon_creation=False,
    default_args={
        "retries": 2,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=30),
        "retry_policy": RecallRetryPolicy(),
    },
)
def verify_archive() -> None:
    chunks = RecallPlanVerificationOperator(
        task_id="list_days",
        recording_id="{{ params.recording_id or '' }}",
        first_day="{{ params['from'] or '' }}",
        last_day="{{ params.to or '' }}",
    )

    verified = RecallVerifyArchiveOperator.partial(
        task_id="verify",
        mode="{{ params.mode }}",
        repair="{{ params.repair }}",
        map_index_template="{{ task_label }}",
        max_active_tis_per_dagrun=4,
    ).expand(chunk=chunks.output)

    report = RecallReportVerificationOperator(
        task_id="report",
        chunks=chunks.output,
        results=verified.output,
        scope={
            "recording_id": "{{ params.recording_id or '' }}",
            "from": "{{ params['from'] or '' }}",
            "to": "{{ params.to or '' }}",
        },
        mode="{{ params.mode }}",
        repair="{{ params.repair }}",
        trigger_rule="all_done",
        on_failure_callback=notify_failure_untold,  # one message a run: it says what the tasks before it could not do
    )

    chunks >> verified >> report


verify_archive()
