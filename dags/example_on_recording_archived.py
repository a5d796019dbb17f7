"""### Do something with every archived recording.

An example to copy: this Dag runs once per settled recording, because it is scheduled on the asset that
`archive_meeting` updates. Here it adds up who spoke and for how long; `example_transcribe` and `example_talk_time` do
more in the same place.

It is paused when it is first seen; unpause it to try it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

from include.provider.assets import RECORDING_ARCHIVED


@dag(
    schedule=[RECORDING_ARCHIVED],
    catchup=False,
    tags=["recall", "example"],
    doc_md=__doc__,
    is_paused_upon_creation=True,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
)
def example_on_recording_archived() -> None:
    @task
    def talk_time(**context: Any) -> dict[str, float]:
        """Add up each participant's seconds over the recordings that this run is about."""
        from include.archive.manifest import load
        from include.archive.speakers import speech
        from include.provider.hook import get_store

        store = get_store()
        seconds: dict[str, float] = {}
        for event in context["triggering_asset_events"][RECORDING_ARCHIVED]:
            folder = event.extra["folder"]
            if manifest := load(store, folder):
                for participant_id, spoken in speech(store, folder, manifest).seconds().items():
                    seconds[f"{manifest.recording.id}/{participant_id}"] = spoken
        return seconds

    talk_time()


example_on_recording_archived()
