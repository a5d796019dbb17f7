"""### Remove one person's audio from the archive.

For privacy requests. Say who it is by e-mail address, by exact name, or by a recording and the participant's id there;
a range of days narrows it down. `plan`, on unless you switch it off, lists what would be removed. Otherwise somebody
has to agree in the Airflow UI; then each recording's manifest loses the name and address, its objects are removed, and
a receipt without personal data is left in the archive. Nothing brings the audio back by itself.

With `at_source`, the separate audio of these recordings is deleted at Recall too: as a whole, for everyone in them,
once what the others said is proven to be in the archive.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from include.provider.errors import RecallRetryPolicy
from include.provider.notices import notify_failure
from include.provider.params import purge_participant_params
from include.provider.removal_operators import (
    APPROVAL_WAIT,
    RecallApprovalOperator,
    RecallFindPersonOperator,
    RecallPurgeOperator,
    RecallPurgeReceiptOperator,
)


@dag(
    schedule=None,
    catchup=False,
    tags=["recall", "delete"],
    params=purge_participant_params(),
    doc_md=__doc__,
    is_paused_upon_creation=True,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=30),
        "retry_policy": RecallRetryPolicy(),
        "on_failure_callback": notify_failure,
    },
)
def purge_participant() -> None:
    found = RecallFindPersonOperator(task_id="find_person")

    approval = RecallApprovalOperator(
        task_id="approve",
        found=found.output,
        about=found.output["about"],
        always=True,
        subject="Remove a person from {{ task.found | length }} recordings of the archive?",
        body="{{ task.about.summary }}",
        defaults="Reject",
        response_timeout=APPROVAL_WAIT,
    )

    purged = RecallPurgeOperator.partial(
        task_id="purge",
        approval=approval.output,
        at_source="{{ params.at_source }}",
        map_index_template="{{ task_label }}",
        max_active_tis_per_dagrun=4,
    ).expand(match=found.output)

    receipt = RecallPurgeReceiptOperator(task_id="write_receipt", purged=purged.output, approval=approval.output)

    found >> approval >> purged >> receipt


purge_participant()
