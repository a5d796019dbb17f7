"""The part of Airflow's triggerer that runs our triggers: its own streams, without its database."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from include.provider.triggers import RecallRecordingTrigger


class Triggerer:
    """Runs triggers as ``TriggerRunner.run_trigger`` does.

    :ivar events: all events by trigger, in the order given; more than one each would be a defect.
    """

    def __init__(self) -> None:
        self.events: dict[int, list[Any]] = defaultdict(list)

    async def run(
        self,
        triggers: Sequence[RecallRecordingTrigger],
        *,
        seconds: float,
        fired: Callable[[int, Any], None] = lambda number, payload: None,
        lacks: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run all until each has ended, or the time is over.

        :param fired: told of each event as it comes, with the trigger's place.
        :param lacks: tells whether an event is late; then there are up to five minutes more, for a slow machine.
        """
        from airflow.triggers.shared_stream import SharedStreamManager

        streams = SharedStreamManager()

        async def one(number: int, trigger: RecallRecordingTrigger) -> None:
            key = trigger.shared_stream_key()
            stream = streams.subscribe(trigger_id=number, trigger=trigger, key=key)
            try:
                async for event in trigger.filter_shared_stream(stream):
                    self.events[number].append(event.payload)
                    fired(number, event.payload)
            finally:
                await streams.unsubscribe(number, key)

        tasks = [asyncio.ensure_future(one(number, trigger)) for number, trigger in enumerate(triggers)]
        await asyncio.wait(tasks, timeout=seconds)
        for _ in range(300):
            if not lacks():
                break
            await asyncio.sleep(1)
        done, pending = await asyncio.wait(tasks, timeout=0)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await streams.stop_all()
        for task in done:
            task.result()


def kind_of(entry: Mapping[str, Any]) -> str | None:
    """Return the limit that a request of the simulator's journal counts against; none for a download."""
    resource, *rest = entry["path"].removeprefix("/api/v1/").strip("/").split("/")
    if entry["origin"] != "api" or resource == "download":
        return None
    return "create" if entry["method"] == "POST" else "retrieve" if rest else "list"


def calls(journal: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Count the API's requests by the limit that they count against."""
    return Counter(kind for entry in journal if (kind := kind_of(entry)) is not None)


def busiest_minute(journal: Sequence[Mapping[str, Any]], kind: str, *, seconds: float = 60.0) -> int:
    """Return the most requests of a kind in any window of so many seconds."""
    times = sorted(entry["time"] for entry in journal if kind_of(entry) == kind)
    most, first = 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def airflow_in(folder: str) -> None:
    """Let Airflow, not yet imported, keep to a folder and say nothing but errors."""
    os.environ |= {
        "AIRFLOW_HOME": f"{folder}/airflow",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    tempfile.tempdir = folder
