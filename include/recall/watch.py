"""The wait for one meeting: one look at it, and what follows from how long the wait has lasted.

A look costs one call while the bot is in the meeting, and one more per recording once the meeting is over. No state is
kept between looks, so any process may take the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from include.recall.errors import (
    RecallError,
    RecallMediaMissingError,
    RecallMediaTimeoutError,
    RecallNotConfiguredError,
    RecallNotFoundError,
    RecallWaitTimeoutError,
)
from include.recall.readiness import AUDIO_NOT_LISTED, Ended, Waiting, assess_bot, assess_recording

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from include.recall.models import AudioArtifact, Bot, Recording


class Source(Protocol):
    """What a look asks: the API (:class:`include.recall.client.RecallClient`), or what was fetched from it."""

    @property
    def server_time(self) -> datetime | None:
        """The API's own clock."""

    def get_bot(self, bot_id: str) -> Bot:
        """Return a bot."""

    def get_recording(self, recording_id: str) -> Recording:
        """Return a recording."""

    def list_audio_separate(self, recording_id: str) -> list[AudioArtifact]:
        """Return all of a recording's artifacts."""


@dataclass(frozen=True)
class WatchedRecording:
    """Where one recording stands.

    :param recording_id: Recall's id.
    :param created_at: when the recording began, ISO 8601 UTC; part of its folder's name in the archive.
    :param bot_id: the bot that made it, ``None`` where Recall doesn't say.
    :param waiting_for: what it still lacks, ``None`` once nothing.
    :param problem: ``{"code", "message"}`` if its audio can't be had, ``None`` if it can.
    :param artifacts: its artifacts, where these are certainly all that it will ever have; else empty.
    :param source: the recording as it was read, with what its bot knows where that was read too.
    """

    recording_id: str
    created_at: str
    bot_id: str | None
    waiting_for: str | None = None
    problem: dict[str, str] | None = None
    artifacts: tuple[AudioArtifact, ...] = ()
    source: Recording | None = None

    @property
    def is_ready(self) -> bool:
        """Its audio can be listed and fetched now."""
        return self.waiting_for is None and self.problem is None

    def to_dict(self) -> dict[str, Any]:
        """Return what goes through XCom: ids, a time and, if there is one, the problem."""
        return {
            "recording_id": self.recording_id,
            "created_at": self.created_at,
            "bot_id": self.bot_id,
            "problem": self.problem,
            "artifact_ids": [artifact.id for artifact in self.artifacts],
        }

    def given_up(self, error: RecallError) -> WatchedRecording:
        """Return the same recording, no longer waited for because of ``error``."""
        return replace(self, waiting_for=None, problem={"code": error.code, "message": error.message})


@dataclass(frozen=True)
class Look:
    """What one look at a meeting saw.

    :param stage: where the meeting is: the bot's status code while it is under way, then what is being waited for.
    :param recordings: the recordings known so far, in the order they began.
    :param bot_is_done: no further recording can appear.
    """

    stage: str
    recordings: tuple[WatchedRecording, ...]
    bot_is_done: bool

    @property
    def is_over(self) -> bool:
        """Nothing is left to wait for."""
        return self.bot_is_done and all(recording.waiting_for is None for recording in self.recordings)

    @property
    def waits_for_audio(self) -> bool:
        """The meeting and its recordings are finished, only separate audio is outstanding."""
        return (
            self.bot_is_done
            and not self.is_over
            and all(
                recording.waiting_for is None or recording.waiting_for.startswith("audio")
                for recording in self.recordings
            )
        )


def look(client: Source, *, bot_id: str | None = None, recording_id: str | None = None) -> Look:
    """Look once at a bot with all its recordings, or at one recording.

    :param client: the API, or what stands for it.
    :param bot_id: the bot, unless a recording is given.
    :param recording_id: one recording alone, whatever else its bot recorded.
    :raises RecallError: the meeting has ended in a way that leaves nothing to archive (``bot_fatal``, ``not_recorded``,
        ``not_configured``), or the API refused or failed.
    """
    if recording_id is not None:
        return _look_at_recording(client, recording_id)
    if bot_id is None:
        raise ValueError("a bot or a recording is needed")
    bot = client.get_bot(bot_id)
    assessment = assess_bot(bot)
    if isinstance(assessment, Waiting) and not bot.is_finished:
        if bot.audio_forms == 0 and not any(client.list_audio_separate(one.id) for one in bot.recordings):
            raise RecallNotConfiguredError(
                f"bot {bot_id} was created without separate audio, so there is none to wait for; "
                'send bots with recording_config {"audio_separate_raw": {}}'
            )
        known = tuple(_watched(one, "the meeting", bot_id) for one in bot.recordings)
        return Look(assessment.stage, known, bot_is_done=False)
    recordings = tuple(
        _assess(client, recording, bot_id, bot.audio_forms)
        for recording in sorted(bot.recordings, key=lambda r: r.created_at)
    )
    return Look(_stage_of(recordings), recordings, bot_is_done=True)


def _look_at_recording(client: Source, recording_id: str) -> Look:
    recording = client.get_recording(recording_id)
    forms: int | None = None
    if recording.is_settled and recording.bot_id is not None:
        # Only the bot knows what audio was asked for, and so whether what is listed is all.
        try:
            bot = client.get_bot(recording.bot_id)
            recording, forms = recording.of(bot), bot.audio_forms
        except RecallNotFoundError:
            forms = None
    watched = _assess(client, recording, recording.bot_id, forms)
    return Look(_stage_of((watched,)), (watched,), bot_is_done=True)


def _assess(client: Source, recording: Recording, bot_id: str | None, forms: int | None) -> WatchedRecording:
    if not recording.is_settled:
        return _watched(recording, f"recording {recording.status}", bot_id)
    artifacts = client.list_audio_separate(recording.id)
    watched = _judge(recording, artifacts, bot_id, None if forms is None else forms > 0, client.server_time)
    return replace(watched, artifacts=tuple(artifacts)) if forms is not None and len(artifacts) >= forms else watched


def _judge(
    recording: Recording,
    artifacts: Sequence[AudioArtifact],
    bot_id: str | None,
    asked_for: bool | None,
    server_time: datetime | None,
) -> WatchedRecording:
    assessment = assess_recording(recording, artifacts, asked_for=asked_for, server_time=server_time)
    if isinstance(assessment, Waiting):
        return _watched(recording, assessment.stage, bot_id)
    watched = _watched(recording, None, bot_id)
    if isinstance(assessment, Ended):
        return replace(watched, problem={"code": assessment.code, "message": assessment.message})
    return watched


def _watched(recording: Recording, waiting_for: str | None, bot_id: str | None) -> WatchedRecording:
    return WatchedRecording(
        recording.id, recording.created_at.isoformat(), recording.bot_id or bot_id, waiting_for, source=recording
    )


def _stage_of(recordings: tuple[WatchedRecording, ...]) -> str:
    return next((one.waiting_for for one in recordings if one.waiting_for is not None), "done")


def give_up_late(
    seen: Look, *, waited: float, wait_timeout: float, audio_waited: float, media_timeout: float
) -> Look | None:
    """Apply the two deadlines: return the look with what is late given up, or ``None`` to keep waiting.

    Recordings that are ready stay ready: a late one never costs the others their audio.

    :param seen: the latest look.
    :param waited: seconds since the wait began.
    :param wait_timeout: seconds that the whole wait may last.
    :param audio_waited: seconds since only separate audio was outstanding.
    :param media_timeout: seconds that separate audio may take.
    :raises RecallWaitTimeoutError: the whole wait is over and no recording is known yet.
    """
    if seen.is_over:
        return seen
    if waited > wait_timeout:
        late: RecallError = RecallWaitTimeoutError(
            f"still {seen.stage} after {wait_timeout:.0f} s; start the run again to wait on, "
            "or raise recall_wait_timeout_seconds"
        )
        if not seen.recordings:
            raise late
    elif seen.waits_for_audio and audio_waited > media_timeout:
        late = RecallMediaTimeoutError(f"separate audio was not ready {media_timeout:.0f} s after its recording")
    else:
        return None

    def listed_late(one: WatchedRecording) -> bool:
        return one.waiting_for == AUDIO_NOT_LISTED and late.code == RecallMediaTimeoutError.code

    return replace(
        seen,
        bot_is_done=True,
        recordings=tuple(
            one if one.waiting_for is None else one.given_up(_missing(one, media_timeout) if listed_late(one) else late)
            for one in seen.recordings
        ),
    )


def _missing(recording: WatchedRecording, media_timeout: float) -> RecallError:
    return RecallMediaMissingError(
        f"recording {recording.recording_id} is finished and separate audio was asked for, but none was listed within "
        f"{media_timeout:.0f} s; the platform may not support it (see Recall's table)"
    )


def poll_interval(seconds_in_stage: float) -> float:
    """Return how long to wait before the next look: soon after a change, then ever more slowly, 5 to 60 s."""
    return min(60.0, max(5.0, seconds_in_stage / 8))
