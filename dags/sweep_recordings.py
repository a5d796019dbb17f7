"""### Find what nobody asked for, and archive it.

Every hour it looks at all recordings of the workspace, and starts `archive_meeting` for each that is finished, has
separate audio, and is not archived: the soonest to expire first. What Recall is still at work on, what failed, and what
is left for the next time is looked at again. Its last task's log and XCom say what became of each.

Start it by hand with `created_after` (and `created_before`) to look at a past range, and with `plan` to see what would
be started without starting it. Airflow's backfill works too: each of its runs looks at its own hour.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.sdk import dag

from include.provider.errors import RecallRetryPolicy
from include.provider.notices import notify_failure
from include.provider.params import sweep_recordings_params
from include.provider.sweep_operators import (
    RecallFindRecordingsOperator,
    RecallStartArchivingOperator,
    sweep_timetable,
)


@dag(
    schedule=sweep_timetable(),
    start_date=datetime(2020, 1, 1, tzinfo=timezone.utc),  # how far a backfill may go back
    catchup=False,
    max_active_runs=1,
    tags=["recall", "archive"],
    params=sweep_recordings_params(),
    doc_md=__doc__,
    is_paused_upon_creation=False,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=15),
        "retry_policy": RecallRetryPolicy(),
        "on_failure_callback": notify_failure,
    },
)
def sweep_recordings() -> None:
    recordings = RecallFindRecordingsOperator(task_id="find_recordings")

    RecallStartArchivingOperator(task_id="start_archiving", found=recordings.output)


sweep_recordings()
