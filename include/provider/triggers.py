"""Wait in the triggerer, where a thousand waiting meetings hold no worker."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from include.errors import CodedError
from include.provider import settings
from include.provider.sealing import Sealed, sealed_links

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Mapping
    from typing import TypeAlias

    from include.recall.poll import Subject
    from include.recall.watch import Look

    Looks: TypeAlias = Mapping[Subject, Look | CodedError]

STATUS_KEY = "bot_status"
"""XCom key under which the waiting task shows where the meeting is."""

_WAITING: dict[Hashable, dict[RecallRecordingTrigger, None]] = {}
"""Who waits, by stream: Airflow's streams don't know their subscribers."""


class RecallRecordingTrigger(BaseEventTrigger):
    """Fire once, when a bot's recordings and their separate audio are settled, or can't become so.

    The event is ``{"recordings": [...], "sealed": {...}, "waited": seconds}`` (see
    :meth:`include.recall.watch.WatchedRecording.to_dict` and :func:`include.provider.sealing.seal`) or
    ``{"error": {"code": …, "message": …}}``.
    Passing faults are waited out; the deadline bounds them too. Class path and arguments
    are stored with deferred tasks: arguments are only ever added, with defaults.

    All triggers of a connection share one poll loop (see :mod:`include.recall.poll`), a stream in Airflow's words. It
    gives each round's looks to everyone, and each trigger takes its own.

    :param recall_conn_id: Airflow connection of type ``recall``.
    :param bot_id: the bot to wait for, unless ``recording_id`` is given.
    :param recording_id: the one recording to wait for.
    :param poll_interval: seconds between looks; ``None`` follows what the bot is doing.
    :param media_timeout: seconds that separate audio may take once the recordings are finished.
    :param wait_timeout: seconds that the whole wait may last.
    :param started_at: when the wait began, seconds since the epoch: a wall clock, since it crosses processes.
    :param request_share: part of Recall's request limits that this machine may use.
    :param stage: where the meeting was when the task looked at it; empty if it hasn't.
    :param seen_at: when that was, seconds since the epoch.
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
        request_share: float = settings.REQUEST_SHARE.default,
        stage: str = "",
        seen_at: float = 0.0,
    ) -> None:
        super().__init__()
        self.recall_conn_id = recall_conn_id
        self.bot_id = bot_id
        self.recording_id = recording_id
        self.poll_interval = poll_interval
        self.media_timeout = media_timeout
        self.wait_timeout = wait_timeout
        self.started_at = started_at
        self.request_share = request_share
        self.stage = self._first_stage = stage
        self.seen_at = seen_at
        self.seen = self.look_by = self._began = 0.0
        self._audio_began: float | None = None

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
                "request_share": self.request_share,
                "stage": self._first_stage,
                "seen_at": self.seen_at,
            },
        )

    @property
    def subject(self) -> Subject:
        """What the poll loop calls the meeting."""
        from include.recall.poll import subject_of

        return subject_of(self)

    def interval(self, seconds_in_stage: float) -> float:
        """Return the seconds between two looks: as set, else by what the bot does and how far off its meeting is."""
        from include.recall.watch import poll_interval

        return self.poll_interval or max(poll_interval(seconds_in_stage), (self.started_at - time.time()) / 2)

    def shared_stream_key(self) -> Hashable:
        """One poll loop for each connection."""
        return (type(self).__qualname__, self.recall_conn_id, self.request_share)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Looks, None]:
        """Look at all meetings that are waited for, in rounds, each in a thread of its own."""
        from include.provider.hook import RecallHook

        trigger = cls(**kwargs)
        poller = await RecallHook(trigger.recall_conn_id).aget_poller(trigger.request_share)
        while True:
            waiting = list(_WAITING.get(trigger.shared_stream_key(), ()))
            looks = await asyncio.to_thread(poller.round, waiting)
            if looks:
                yield looks
            await asyncio.sleep(min(1.0, 0.1 + len(waiting) / 1000))

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Looks]) -> AsyncIterator[TriggerEvent]:
        """Fire at what ends this wait."""
        waiting = _WAITING.setdefault(self.shared_stream_key(), {})
        # The time already waited comes from the wall clock once; from here on a clock that can't jump counts.
        self._began = time.monotonic() - max(0.0, time.time() - self.started_at)
        self.look_by = self._began + self.wait_timeout
        self.seen = time.monotonic() - max(0.0, time.time() - self.seen_at)
        waiting[self] = None
        try:
            async for looks in shared_stream:
                found = looks.get(self.subject)
                settled = None if found is None else await self._settled(found)
                if settled is not None:
                    recordings = [recording.to_dict() for recording in settled.recordings]
                    sealed, waited = Sealed(sealed_links(settled)), round(time.monotonic() - self._began, 3)
                    yield TriggerEvent({"recordings": recordings, "sealed": sealed, "waited": waited})
                    return
        except CodedError as error:
            yield TriggerEvent({"error": {"code": error.code, "message": error.message}})
        finally:
            waiting.pop(self, None)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait alone, with a poll loop of its own."""
        async with aclosing(type(self).open_shared_stream(self.serialize()[1])) as looks:
            async for event in self.filter_shared_stream(looks):
                yield event

    async def _settled(self, found: Look | CodedError) -> Look | None:
        """Take note of a look; return it once there is nothing left to wait for."""
        from include.recall.errors import RecallWaitTimeoutError
        from include.recall.watch import give_up_late

        now = time.monotonic()
        if isinstance(found, CodedError):
            if found.permanent:
                raise found
            self.log.warning("Could not look at the meeting, will try again: %s", found)
            if now - self._began > self.wait_timeout:
                raise RecallWaitTimeoutError(
                    f"no answer from Recall at the end of {self.wait_timeout:.0f} s of waiting: {found}"
                ) from None
            return None
        if found.stage != self.stage:
            self.stage = found.stage
            self.log.info("The meeting is at: %s", found.stage)
            await self._show(found.stage)
        self._audio_began = (self._audio_began or now) if found.waits_for_audio else None
        deadlines = [self._began + self.wait_timeout]
        if self._audio_began is not None:
            deadlines.append(self._audio_began + self.media_timeout)
        self.look_by = min(deadlines)
        return give_up_late(
            found,
            waited=now - self._began,
            wait_timeout=self.wait_timeout,
            audio_waited=0.0 if self._audio_began is None else now - self._audio_began,
            media_timeout=self.media_timeout,
        )

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
