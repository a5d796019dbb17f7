"""The wait for many meetings of one workspace: who is looked at when, and with which calls.

Retrieve calls are five times as plentiful as list calls, but a page of a list tells about many meetings. So a few
meetings are looked at one by one. Many that are being recorded are watched together, by the list of recordings under
way: whoever is no longer on it is looked at next. Where several recordings need their artifacts listed, one walk over
the workspace's artifacts serves them all, and an artifact whose id is known is retrieved. Bots are never listed: Recall
asks not to use that list for their status.

Waiting takes at most half of the machine's share of the request limits; archiving has the other half.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from include.errors import CodedError
from include.recall.budget import LIMITS, per_minute
from include.recall.errors import RecallNotFoundError
from include.recall.watch import look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from include.recall.client import RecallClient, RequestKind
    from include.recall.models import AudioArtifact, Bot, Recording
    from include.recall.watch import Look

T = TypeVar("T")

Subject = tuple[str | None, str | None]
"""What is waited for: a bot's id, or else a recording's."""

WAITING_SHARE = 0.5
"""Part of the machine's share of the limits that waiting may take."""

RECORDED = "in_call_recording"
"""The stage in which the list of recordings under way tells all there is to know."""

ROUND = 64
"""Most meetings of one round."""

THREADS = 8
"""Looks at the same time, so that one slow answer doesn't hold up the rest."""

NO_ROOM_SECONDS = 5.0
"""When to come back to a meeting that needs a list call, of which there is none left."""

LONGEST_RECORDING = timedelta(days=1)
"""How far back the list of recordings under way is read; an older one is looked at by itself."""

MARGIN = timedelta(hours=1)
"""How much earlier than its recording an artifact may have begun."""


class Watched(Protocol):
    """Someone who waits for a meeting."""

    bot_id: str | None
    recording_id: str | None
    look_by: float
    """When a deadline of theirs ends, on the monotonic clock; a look is due then at the latest."""
    stage: str
    """Where the meeting was when they last heard of it; empty if never."""
    seen: float
    """When that was, on the monotonic clock."""

    def interval(self, seconds_in_stage: float) -> float:
        """Return the seconds that they let pass between two looks."""


@dataclass
class _Meeting:
    """What is remembered of a meeting between its looks: nothing that a new process couldn't do without."""

    due: float
    stage: str
    stage_began: float
    interval: float = 0.0
    looked: float = float("-inf")
    urgent: bool = False
    bot: Bot | None = None
    recording: Recording | None = None
    artifact_ids: dict[str, list[str]] = field(default_factory=dict)


class Poller:
    """Looks at meetings, a round at a time.

    :param client: the API; used by several threads of a round, and by this poller alone.
    :param share: the machine's part of Recall's request limits.
    :param clock: seconds that never jump.
    """

    def __init__(self, client: RecallClient, share: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._a_minute = {kind: max(1, int(per_minute(kind, share) * WAITING_SHARE)) for kind in LIMITS}
        self._spent: deque[tuple[float, RequestKind, int]] = deque()
        self._meetings: dict[Subject, _Meeting] = {}
        self._pages = {"recording": 1, "audio_separate": 1}
        self._next_walk = float("-inf")

    def round(self, waiting: Iterable[Watched]) -> dict[Subject, Look | CodedError]:
        """Look at the meetings that are due, as many as the budget has room for.

        :param waiting: everyone who waits now.
        :return: what was seen, or the error, by :func:`subject_of` those who wait for it.
        """
        now = self._clock()
        by_subject: dict[Subject, list[Watched]] = {}
        for one in waiting:
            by_subject.setdefault(subject_of(one), []).append(one)
        self._meetings = {
            subject: self._meetings.get(subject) or _begin(everyone, now) for subject, everyone in by_subject.items()
        }
        for subject, everyone in by_subject.items():
            meeting = self._meetings[subject]
            meeting.interval = min(one.interval(now - meeting.stage_began) for one in everyone)
            meeting.due = min([meeting.due, *(one.look_by for one in everyone if one.look_by > meeting.looked)])
        self._walk_recordings(now)
        due = [subject for subject, meeting in self._meetings.items() if meeting.due <= now]
        due.sort(key=lambda subject: (not self._meetings[subject].urgent, self._meetings[subject].due))
        return self._look_at(due[: min(ROUND, self._room("retrieve"))])

    def _look_at(self, subjects: list[Subject]) -> dict[Subject, Look | CodedError]:
        if not subjects:
            return {}
        source = _Source(self._client, self._meetings)
        with ThreadPoolExecutor(THREADS) as threads:
            before = self._client.calls.copy()
            list(threads.map(source.prefetch, subjects))
            self._note(before)
            self._walk_artifacts(source)
            source.lists_left = self._room("list")
            before = self._client.calls.copy()
            results = dict(zip(subjects, threads.map(source.look, subjects), strict=True))
            self._note(before)
        now = self._clock()
        seen = {subject: result for subject, result in results.items() if result is not None}
        for subject, result in results.items():
            meeting = self._meetings[subject]
            if result is None:
                meeting.due = now + NO_ROOM_SECONDS
                continue
            meeting.looked = now
            if isinstance(result, CodedError):
                meeting.due = now + max(meeting.interval, result.retry_after or 0.0)
                continue
            if result.stage != meeting.stage:
                meeting.stage, meeting.stage_began = result.stage, now
            meeting.urgent = result.bot_is_done
            meeting.due = now + meeting.interval
        return seen

    def _walk_recordings(self, now: float) -> None:
        """Put off all that are still being recorded, and look next at those that no longer are."""
        recorded = [one for one in self._meetings.values() if one.stage == RECORDED and not one.urgent]
        pages = self._pages["recording"]
        # A list call weighs as much as five retrieve calls.
        if len(recorded) <= pages * LIMITS["retrieve"] / LIMITS["list"] or self._client.server_time is None:
            return
        # These walks leave half of the list calls to those that need an artifact listed.
        every = max(min(one.interval for one in recorded), 2 * pages * 60 / self._a_minute["list"])
        if now < self._next_walk or self._room("list") < pages:
            return
        self._next_walk = now + every
        before = self._client.calls.copy()
        try:
            under_way = self._client.list_recordings(
                status_code="processing", created_at_after=self._client.server_time - LONGEST_RECORDING
            )
        except CodedError:
            return  # they are looked at one by one meanwhile
        finally:
            self._pages["recording"] = max(1, self._note(before))
        ids = {one.id for one in under_way} | {one.bot_id for one in under_way}
        for (bot_id, recording_id), meeting in self._meetings.items():
            if meeting.stage == RECORDED and not meeting.urgent:
                meeting.urgent = (recording_id or bot_id) not in ids
                # The next walk comes first; without one, it is looked at by itself.
                meeting.due = now if meeting.urgent else now + 2 * max(every, meeting.interval)

    def _walk_artifacts(self, source: _Source) -> None:
        """List the artifacts of many recordings at once, where that takes fewer calls than one by one."""
        recordings = source.unlisted()
        if len(recordings) <= self._pages["audio_separate"]:
            return
        before = self._client.calls.copy()
        try:
            source.listed = self._client.list_all_audio_separate(min(one.created_at for one in recordings) - MARGIN)
        except CodedError:
            return  # each of them is listed by itself, and says what is wrong
        finally:
            self._pages["audio_separate"] = max(1, self._note(before))

    def _note(self, before: Mapping[RequestKind, int]) -> int:
        """Enter the calls that were made since; return how many lists' pages were among them."""
        made = {kind: self._client.calls[kind] - before.get(kind, 0) for kind in LIMITS}
        now = self._clock()
        self._spent.extend((now, kind, count) for kind, count in made.items() if count)
        return made["list"]

    def _room(self, kind: RequestKind) -> int:
        now = self._clock()
        while self._spent and self._spent[0][0] <= now - 60:
            self._spent.popleft()
        return max(0, self._a_minute[kind] - sum(count for _, one, count in self._spent if one == kind))


class _Source:
    """What one round of looks is answered from: what was fetched for all together, else the API.

    :ivar listed: artifacts by recording, from a walk over all of them.
    :ivar lists_left: how many recordings may still be listed by themselves.
    """

    def __init__(self, client: RecallClient, meetings: Mapping[Subject, _Meeting]) -> None:
        self._client = client
        self._meetings = meetings
        self._bots: dict[str, Bot | CodedError] = {}
        self._recordings: dict[str, Recording | CodedError] = {}
        self._artifact_ids = {key: ids for one in meetings.values() for key, ids in one.artifact_ids.items()}
        self.listed: dict[str, list[AudioArtifact]] = {}
        self.lists_left = 0

    @property
    def server_time(self) -> datetime | None:
        return self._client.server_time

    def prefetch(self, subject: Subject) -> None:
        """Fetch a bot or a recording, unless it can't change any more."""
        bot_id, recording_id = subject
        meeting = self._meetings[subject]
        if recording_id is not None:
            recording = meeting.recording or self._recording(recording_id)
            self._recordings[recording_id] = recording
            if isinstance(recording, CodedError) or not recording.is_settled:
                return
            meeting.recording, bot_id = recording, recording.bot_id
        if bot_id is None:
            return
        bot = self._bots[bot_id] = meeting.bot or self._bot(bot_id)
        if not isinstance(bot, CodedError) and bot.is_finished and all(one.is_settled for one in bot.recordings):
            meeting.bot = bot

    def _bot(self, bot_id: str) -> Bot | CodedError:
        try:
            return self._client.get_bot(bot_id)
        except CodedError as error:
            return error

    def _recording(self, recording_id: str) -> Recording | CodedError:
        try:
            return self._client.get_recording(recording_id)
        except CodedError as error:
            return error

    def unlisted(self) -> list[Recording]:
        """Return the recordings whose artifacts the looks will want listed."""
        finished = [one for one in self._bots.values() if not isinstance(one, CodedError) and one.is_finished]
        embedded = [one for bot in finished for one in bot.recordings]
        alone = [one for one in self._recordings.values() if not isinstance(one, CodedError)]
        wanted = {one.id: one for one in [*embedded, *alone] if one.is_settled}
        return [one for one in wanted.values() if one.id not in self._artifact_ids]

    def look(self, subject: Subject) -> Look | CodedError | None:
        """Look at a meeting; ``None`` if that has to wait for a list call."""
        bot_id, recording_id = subject
        try:
            seen = look(self, bot_id=bot_id, recording_id=recording_id)
        except CodedError as error:
            return error
        except _NoRoomError:
            return None
        self._meetings[subject].artifact_ids = {
            one.recording_id: [artifact.id for artifact in one.artifacts] for one in seen.recordings if one.artifacts
        }
        return seen

    def get_bot(self, bot_id: str) -> Bot:
        return _value(self._bots[bot_id])

    def get_recording(self, recording_id: str) -> Recording:
        return _value(self._recordings[recording_id])

    def list_audio_separate(self, recording_id: str) -> list[AudioArtifact]:
        if recording_id in self.listed:
            return self.listed[recording_id]
        if ids := self._artifact_ids.get(recording_id):
            with suppress(RecallNotFoundError):  # deleted: the list tells
                return [self._client.get_audio_separate(one) for one in ids]
        if self.lists_left <= 0:
            raise _NoRoomError
        self.lists_left -= 1
        return self._client.list_audio_separate(recording_id)


class _NoRoomError(Exception):
    pass


def _begin(everyone: list[Watched], now: float) -> _Meeting:
    """Take what was last heard of a meeting for its first look."""
    latest = max(everyone, key=lambda one: one.seen)
    return _Meeting(min(now, latest.seen) + latest.interval(0.0) if latest.stage else now, latest.stage, now)


def _value(found: T | CodedError) -> T:
    if isinstance(found, CodedError):
        raise found
    return found


def subject_of(one: Watched) -> Subject:
    """Return what is the same for all who wait for the same."""
    return (None, one.recording_id) if one.recording_id is not None else (one.bot_id, None)
