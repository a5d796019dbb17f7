"""### Load talk time into a table.

An example to copy: for each archived recording, one row per participant in the table `talk_time` of whatever database
the Airflow connection `recall_warehouse` names; any connection type with a SQL hook does (Postgres, Snowflake, SQLite).
Loading a recording again replaces its rows. They hold ids only; names are in the manifest.

It is paused when it is first seen; unpause it once the connection exists.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

from include.provider.assets import RECORDING_ARCHIVED

WAREHOUSE = "recall_warehouse"
TABLE = """
CREATE TABLE IF NOT EXISTS talk_time (
    recording_id VARCHAR(100) NOT NULL,
    participant_id BIGINT NOT NULL,
    began_on DATE NOT NULL,
    talk_seconds DOUBLE PRECISION NOT NULL,
    source VARCHAR(40) NOT NULL,
    PRIMARY KEY (recording_id, participant_id)
)
"""
COLUMNS = ["recording_id", "participant_id", "began_on", "talk_seconds", "source"]


@dag(
    schedule=[RECORDING_ARCHIVED],
    catchup=False,
    tags=["recall", "example"],
    doc_md=__doc__,
    is_paused_upon_creation=True,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=30)},
)
def example_talk_time() -> None:
    @task
    def load_talk_time(**context: Any) -> int:
        """Replace the rows of the recordings that this run is about; return how many there are now."""
        from airflow.sdk import Connection

        from include.archive.manifest import load
        from include.archive.speakers import speech
        from include.provider.hook import get_store

        store, warehouse = get_store(), Connection.get(WAREHOUSE).get_hook()
        warehouse.run(TABLE)
        loaded = 0
        for event in context["triggering_asset_events"][RECORDING_ARCHIVED]:
            manifest = load(store, event.extra["folder"])
            if manifest is None:
                continue
            spoken = speech(store, event.extra["folder"], manifest)
            recording, day = manifest.recording.id, manifest.recording.created_at.date().isoformat()
            rows = [
                (recording, participant.id, day, spoken.seconds().get(participant.id, 0.0), spoken.source)
                for participant in manifest.participants
            ]
            warehouse.run(
                f"DELETE FROM talk_time WHERE recording_id = {warehouse.placeholder}",  # noqa: S608 - no value in it
                parameters=(recording,),
            )
            warehouse.insert_rows("talk_time", rows, target_fields=COLUMNS)
            loaded += len(rows)
        return loaded

    load_talk_time()


example_talk_time()
