"""### Send a bot to each meeting of a list.

An example to copy: one mapped task sends the bots, to meetings that lie ahead or begin now. Whatever fails, or is
started twice, each meeting gets one bot. Once the meetings are over, the sweep or a webhook has them archived; nothing
waits here.

The list is the run's param `meetings`. In place of the first task, ask your calendar. It is paused when it is first
seen.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task

from include.provider.operators import RecallCreateBotOperator

MEETING = {
    "type": "object",
    "required": ["meeting_url"],
    "additionalProperties": False,
    "properties": {
        "meeting_url": {"type": "string", "pattern": "^https://"},
        "join_at": {"type": "string", "format": "date-time"},
        "bot_name": {"type": "string", "maxLength": 100},
    },
}


@dag(
    schedule=None,
    catchup=False,
    tags=["recall", "example"],
    doc_md=__doc__,
    is_paused_upon_creation=True,
    params={"meetings": Param(type="array", items=MEETING, title="Meetings")},
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
)
def example_send_bots() -> None:
    @task
    def meetings(params: dict[str, Any] | None = None) -> list[dict[str, str]]:
        """Return the meetings: `meeting_url`, and where they are given `join_at` and `bot_name`."""
        return list((params or {})["meetings"])

    RecallCreateBotOperator.partial(task_id="send_bot").expand_kwargs(meetings())


example_send_bots()
