"""Where a bot, a recording and its audio stand. Pure functions: whoever fetched the records asks them.

Times of the API are compared with each other alone, never with the local clock. Unknown statuses mean "wait".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from include.recall.errors import RecallBotFailedError, RecallMediaExpiredError, RecallNotRecordedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from include.recall.models import AudioArtifact, Bot, Recording

RECORDING_PROCESSING = "recording processing"
AUDIO_PROCESSING = "audio processing"
AUDIO_NOT_LISTED = "audio not listed yet"


@dataclass(frozen=True)
class Waiting:
    """Nothing to do yet.

    :param stage: the bot's status code while it is under way (``scheduled`` before the first), then one of this
        module's constants.
    :param detail: more for a person; may be empty.
    """

    stage: str
    detail: str = ""


@dataclass(frozen=True)
class Finished:
    """The bot is done; these are all its recordings, in the order they began."""

    recordings: tuple[Recording, ...]


@dataclass(frozen=True)
class FailedArtifact:
    """An artifact that has nothing to give, beside others that do."""

    artifact_id: str
    code: str
    sub_code: str | None


@dataclass(frozen=True)
class Ready:
    """These artifacts can be fetched now; ``failed`` ones are gaps."""

    artifact_ids: tuple[str, ...]
    failed: tuple[FailedArtifact, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The recording has no separate audio and will never have any.

    :param code: as of the errors: ``not_configured``, ``media_failed``, ``media_deleted`` or ``media_expired``.
    """

    code: Literal["not_configured", "media_failed", "media_deleted", "media_expired"]
    message: str


Assessment = Waiting | Ready | Ended


def assess_bot(bot: Bot) -> Waiting | Finished:
    """Say whether a bot and all its recordings are finished.

    :raises RecallBotFailedError: it failed and has no recording.
    :raises RecallNotRecordedError: it finished and has no recording; the reason is the ``sub_code`` of ``call_ended``.
    :raises RecallMediaExpiredError: its recordings are no longer listed.
    """
    if not bot.is_finished:
        status = bot.status
        return Waiting("scheduled") if status is None else Waiting(status.code, status.sub_code or "")
    if not bot.recordings:
        _raise_unrecorded(bot)
    unsettled = sorted({recording.status for recording in bot.recordings if not recording.is_settled})
    if unsettled:
        return Waiting(RECORDING_PROCESSING, f"recording {', '.join(unsettled)}")
    return Finished(tuple(sorted(bot.recordings, key=lambda recording: recording.created_at)))


def _raise_unrecorded(bot: Bot) -> None:
    reasons = {change.code: change.sub_code for change in sorted(bot.status_changes, key=lambda one: one.created_at)}
    if "media_expired" in reasons:
        raise RecallMediaExpiredError(f"the recordings of bot {bot.id} were deleted or have expired at Recall")
    if "fatal" in reasons:
        reason = reasons["fatal"]
        raise RecallBotFailedError(
            f"bot {bot.id} failed before it recorded anything: {reason or 'no reason given'}", sub_code=reason
        )
    reason = reasons.get("call_ended")
    raise RecallNotRecordedError(
        f"bot {bot.id} finished without recording: {reason or 'no reason given'}", sub_code=reason
    )


def assess_recording(
    recording: Recording,
    artifacts: Sequence[AudioArtifact],
    *,
    asked_for: bool | None,
    server_time: datetime | None,
) -> Assessment:
    """Say whether a recording's separate audio can be fetched.

    :param artifacts: everything listed for the recording.
    :param asked_for: whether the bot was asked for separate audio; ``None`` if nobody knows.
    :param server_time: the API's own clock, for what has expired; ``None`` leaves expiry to the statuses.
    """
    expired = recording.expires_at is not None and server_time is not None and recording.expires_at < server_time
    if recording.status == "deleted":
        return _gone(recording, expired)
    if not recording.is_settled:
        return Waiting(RECORDING_PROCESSING, f"recording {recording.status}")
    done = tuple(one.id for one in artifacts if one.status == "done" and one.download_url is not None)
    lost = tuple(
        FailedArtifact(one.id, _code_of(one.status, expired), one.sub_code)
        for one in artifacts
        if one.status in ("failed", "deleted")
    )
    if len(done) + len(lost) < len(artifacts):
        return _gone(recording, expired) if expired else Waiting(AUDIO_PROCESSING)
    if done:
        return Ready(done, lost)
    if recording.status == "failed" or any(one.code == "media_failed" for one in lost):
        reason = next((one.sub_code for one in lost if one.sub_code), recording.sub_code)
        return Ended(
            "media_failed", f"Recall failed on recording {recording.id}'s audio: {reason or 'no reason given'}"
        )
    if lost:
        return _gone(recording, expired)
    return _unlisted(recording, asked_for, expired)


def _code_of(status: str, expired: bool) -> str:
    if status == "failed":
        return "media_failed"
    return "media_expired" if expired else "media_deleted"


def _gone(recording: Recording, expired: bool) -> Ended:
    if expired:
        return Ended(
            "media_expired", f"recording {recording.id} expired at Recall at {recording.expires_at:%Y-%m-%dT%H:%M:%SZ}"
        )
    return Ended("media_deleted", f"recording {recording.id} or its audio was deleted at Recall")


def _unlisted(recording: Recording, asked_for: bool | None, expired: bool) -> Waiting | Ended:
    if asked_for is False:
        return Ended(
            "not_configured",
            f"recording {recording.id} has no separate audio because its bot was not asked for any; "
            'create bots with recording_config {"audio_separate_raw": {}}',
        )
    return _gone(recording, expired) if expired else Waiting(AUDIO_NOT_LISTED)
