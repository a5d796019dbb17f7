"""Wait in the triggerer, where a thousand waiting meetings hold no worker."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.errors import CodedError
from include.provider.sealing import sealed_links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from include.recall.client import RecallClient
    from include.recall.watch import Look

STATUS_KEY = "bot_status"
"""XCom key under which the waiting task shows where the meeting is."""


class RecallRecordingTrigger(BaseTrigger):
    """Fire once, when a bot's recordings and their separate audio are settled, or can't become so.

    The event is ``{"recordings": [...], "sealed": {...}}`` (see :meth:`include.recall.watch.WatchedRecording.to_dict`
    and :func:`include.provider.sealing.seal`) or ``{"error": {"code": …, "message": …}}``.
    Passing faults are waited out; the deadline bounds them too. Class path and arguments
    are stored with deferred tasks: arguments are only ever added, with defaults.

    :param recall_conn_id: Airflow connection of type ``recall``.
    :param bot_id: the bot to wait for, unless ``recording_id`` is given.
    :param recording_id: the one recording to wait for.
    :param poll_interval: seconds between looks; ``None`` follows what the bot is doing.
    :param media_timeout: seconds that separate audio may take once the recordings are finished.
    :param wait_timeout: seconds that the whole wait may last.
    :param started_at: when the wait began, seconds since the epoch: a wall clock, since it crosses processes.
    """

    def __init__(
        self,
        *,
        recall_conn_id: str,
        bot_id: str | None,
        recording_id: str | None,
        poll_interval: float | None,
        media_timeout: float,
        wait_timeout: float,
        started_at: float,
    ) -> None:
        super().__init__()
        self.recall_conn_id = recall_conn_id
        self.bot_id = bot_id
        self.recording_id = recording_id
        self.poll_interval = poll_interval
        self.media_timeout = media_timeout
        self.wait_timeout = wait_timeout
        self.started_at = started_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer rebuilds this trigger from; nothing in it is secret."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "recall_conn_id": self.recall_conn_id,
                "bot_id": self.bot_id,
                "recording_id": self.recording_id,
                "poll_interval": self.poll_interval,
                "media_timeout": self.media_timeout,
                "wait_timeout": self.wait_timeout,
                "started_at": self.started_at,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is nothing left to wait for; each look runs in a thread of its own."""
        from include.provider.hook import RecallHook

        try:
            client = await RecallHook(self.recall_conn_id).aget_conn()
            seen = await self._wait(client)
        except CodedError as error:
            yield TriggerEvent({"error": {"code": error.code, "message": error.message}})
        else:
            recordings = [recording.to_dict() for recording in seen.recordings]
            yield TriggerEvent({"recordings": recordings, "sealed": sealed_links(seen)})

    async def _wait(self, client: RecallClient) -> Look:
        from include.recall.errors import RecallWaitTimeoutError
        from include.recall.watch import give_up_late, look, poll_interval

        # The time already waited comes from the wall clock once; from here on a clock that can't jump counts.
        began = time.monotonic() - max(0.0, time.time() - self.started_at)
        stage, stage_began = "", time.monotonic()
        audio_began: float | None = None
        while True:
            pause = 0.0
            try:
                seen = await asyncio.to_thread(look, client, bot_id=self.bot_id, recording_id=self.recording_id)
            except CodedError as error:
                if error.permanent:
                    raise
                self.log.warning("Could not look at the meeting, will try again: %s", error)
                pause = error.retry_after or 0.0
                if time.monotonic() - began > self.wait_timeout:
                    raise RecallWaitTimeoutError(
                        f"no answer from Recall at the end of {self.wait_timeout:.0f} s of waiting: {error}"
                    ) from None
            else:
                now = time.monotonic()
                if seen.stage != stage:
                    stage, stage_began = seen.stage, now
                    self.log.info("The meeting is at: %s", stage)
                    await self._show(stage)
                audio_began = (audio_began or now) if seen.waits_for_audio else None
                settled = give_up_late(
                    seen,
                    waited=now - began,
                    wait_timeout=self.wait_timeout,
                    audio_waited=0.0 if audio_began is None else now - audio_began,
                    media_timeout=self.media_timeout,
                )
                if settled is not None:
                    return settled
            await asyncio.sleep(max(pause, self.poll_interval or poll_interval(time.monotonic() - stage_began)))

    async def _show(self, stage: str) -> None:
        """Let the UI show, on the deferred task, where the meeting is."""
        from airflow.sdk.execution_time.xcom import XCom

        ti = self.task_instance
        if ti is None:
            return
        try:
            await XCom.aset(
                key=STATUS_KEY,
                value=stage,
                dag_id=ti.dag_id,
                task_id=ti.task_id,
                run_id=ti.run_id,
                map_index=ti.map_index if ti.map_index is not None else -1,
            )
        except Exception as error:
            # It is there to be looked at; the wait goes on without it.
            self.log.warning("Could not show where the meeting is: %s", type(error).__name__)
