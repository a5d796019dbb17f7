"""### Archive one meeting.

Sends a bot (only for a `meeting_url`), waits until its recordings are finished, lists every participant's audio,
archives it participant by participant, and settles: writes the manifest that proves what is stored, or says what is
owed.

Start it by hand (Trigger), through the REST API, or let the sweep or a webhook do it. Give exactly one of
`meeting_url`, `bot_id` and `recording_id`. Starting it twice for the same meeting is safe: what is archived is never
fetched or written again.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from include.provider.assets import RECALL_MEETINGS, RECORDING_ARCHIVED
from include.provider.errors import RecallRetryPolicy
from include.provider.notices import notify_failure
from include.provider.operators import (
    RecallArchiveParticipantOperator,
    RecallCreateBotOperator,
    RecallListParticipantAudioOperator,
    RecallSettleRecordingOperator,
)
from include.provider.params import archive_meeting_params, refuse_contradictions
from include.provider.sensors import RecallRecordingSensor


@dag(
    schedule=None,
    catchup=False,
    tags=["recall", "archive"],
    params=archive_meeting_params(),
    doc_md=__doc__,
    is_paused_upon_creation=False,
    max_active_runs=10_000,  # a waiting meeting is an active run, and holds nothing but its row
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=20),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=10),
        "retry_policy": RecallRetryPolicy(),
    },
)
def archive_meeting() -> None:
    bot_id = RecallCreateBotOperator(
        task_id="send_bot",
        meeting_url="{{ params.meeting_url or '' }}",
        bot_name="{{ params.bot_name or '' }}",
        join_at="{{ params.join_at or '' }}",
        pre_execute=refuse_contradictions,
        on_failure_callback=notify_failure,
    )

    recordings = RecallRecordingSensor(
        task_id="wait_for_recordings",
        bot_id="{{ params.bot_id or ti.xcom_pull(task_ids='send_bot') or '' }}",
        recording_id="{{ params.recording_id or '' }}",
        join_at="{{ params.join_at or '' }}",
        trigger_rule="none_failed",
        on_failure_callback=notify_failure,
    )

    participants = RecallListParticipantAudioOperator(
        task_id="list_participant_audio",
        recordings=recordings.output,
    )

    archived = RecallArchiveParticipantOperator.partial(
        task_id="archive_participant",
        map_index_template="{{ task_label }}",
    ).expand(batch=participants.output)

    settled = RecallSettleRecordingOperator.partial(
        task_id="settle",
        archived=archived.output,
        map_index_template="{{ task_label }}",
        trigger_rule="all_done",
        inlets=[RECALL_MEETINGS],
        outlets=[RECORDING_ARCHIVED],
        on_failure_callback=notify_failure,  # one message a meeting: it says what the tasks before it could not do
    ).expand(recording=recordings.output)

    bot_id >> recordings >> participants >> archived >> settled


archive_meeting()
