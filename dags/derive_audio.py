"""### Make further audio from what is archived.

Off until it is switched on here. It then runs for every recording that is archived, and makes what the Variable
`recall_derived_audio` names: `aligned`, one file with a channel for each participant, all beginning at the recording's
start; `flac`, a lossless copy of each part at a fraction of its size. Both need `requirements/audio.in` on the workers.

Everything is made from the archive alone, proven before it counts, kept below the recording's folder in `derived/`, and
can be deleted and made again. Trigger it with a `recording_id` for a recording that was archived before.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from include.provider.assets import RECORDING_ARCHIVED
from include.provider.derive import RecallDeriveAudioOperator, RecallFindArchivedOperator
from include.provider.errors import RecallRetryPolicy
from include.provider.notices import notify_failure
from include.provider.params import derive_audio_params


@dag(
    schedule=[RECORDING_ARCHIVED],
    catchup=False,
    tags=["recall", "derive"],
    params=derive_audio_params(),
    doc_md=__doc__,
    is_paused_upon_creation=True,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=20),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=10),
        "retry_policy": RecallRetryPolicy(),
        "on_failure_callback": notify_failure,
    },
)
def derive_audio() -> None:
    work = RecallFindArchivedOperator(task_id="find_archived")

    RecallDeriveAudioOperator.partial(
        task_id="make",
        map_index_template="{{ task_label }}",
        max_active_tis_per_dagrun=4,
    ).expand(work=work.output)


derive_audio()
