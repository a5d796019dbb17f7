"""### Archive a meeting inside a Dag of your own.

An example to copy: the sensor and the operators of `archive_meeting`, with a step of one's own behind them. It waits
for what a bot records, without holding a worker, archives each participant's audio, writes the manifest, and then says
how long each participant was heard.

It is paused when it is first seen. Unpause it and trigger it with the id of a bot.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task

from include.provider.assets import RECALL_MEETINGS
from include.provider.operators import (
    RecallArchiveParticipantOperator,
    RecallListParticipantAudioOperator,
    RecallSettleRecordingOperator,
)
from include.provider.sensors import RecallRecordingSensor


@dag(
    schedule=None,
    catchup=False,
    tags=["recall", "example"],
    doc_md=__doc__,
    is_paused_upon_creation=True,
    params={"bot_id": Param(type="string", minLength=1, maxLength=64, title="Bot id")},
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
)
def example_archive_in_your_dag() -> None:
    recordings = RecallRecordingSensor(task_id="wait_for_recordings", bot_id="{{ params.bot_id }}")

    participants = RecallListParticipantAudioOperator(task_id="list_participant_audio", recordings=recordings.output)

    archived = RecallArchiveParticipantOperator.partial(
        task_id="archive_participant",
        map_index_template="{{ task_label }}",
    ).expand(batch=participants.output)

    settled = RecallSettleRecordingOperator.partial(
        task_id="settle",
        archived=archived.output,
        map_index_template="{{ task_label }}",
        trigger_rule="all_done",  # it says itself what could not be archived
        inlets=[RECALL_MEETINGS],
    ).expand(recording=recordings.output)

    @task
    def heard(settled: Any) -> dict[str, float]:
        """Return each participant's seconds of audio."""
        from include.archive.manifest import load
        from include.provider.hook import get_store

        store, seconds = get_store(), {}
        for recording in settled:
            manifest = load(store, recording["folder"])
            for part in manifest.parts if manifest else ():
                who = f"{manifest.recording.id}/{part.participant_id}"
                seconds[who] = seconds.get(who, 0.0) + part.duration_seconds
        return seconds

    heard(settled.output)


example_archive_in_your_dag()
