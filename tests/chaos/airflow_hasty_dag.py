"""The operators of `archive_meeting`, with a copy that may take a few seconds only and is not tried again."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from include.provider.operators import (
    RecallArchiveParticipantOperator,
    RecallListParticipantAudioOperator,
    RecallSettleRecordingOperator,
)
from include.provider.params import archive_meeting_params
from include.provider.sensors import RecallRecordingSensor


@dag(schedule=None, params=archive_meeting_params(), is_paused_upon_creation=False, default_args={"retries": 0})
def archive_in_haste() -> None:
    recordings = RecallRecordingSensor(task_id="wait_for_recordings", bot_id="{{ params.bot_id }}")
    participants = RecallListParticipantAudioOperator(task_id="list_participant_audio", recordings=recordings.output)
    archived = RecallArchiveParticipantOperator.partial(
        task_id="archive_participant",
        map_index_template="{{ task_label }}",
        execution_timeout=timedelta(seconds=15),
    ).expand(batch=participants.output)
    settled = RecallSettleRecordingOperator.partial(
        task_id="settle", archived=archived.output, trigger_rule="all_done"
    ).expand(recording=recordings.output)
    recordings >> participants >> archived >> settled


archive_in_haste()
