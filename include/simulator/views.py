"""The JSON of the API, field for field."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, Any

from include.simulator.world import (
    ArtifactState,
    BotState,
    RecordingState,
    World,
    format_time,
    platform_of,
    read_meeting_url,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.links import Origins

_BATCH = 500


def bot_json(bot: BotState, world: World, origins: Origins) -> dict[str, Any]:
    """Show a bot."""
    now = world.now()
    request = bot.request
    changes = [
        {"code": step.code, "message": step.message, "sub_code": step.sub_code, "created_at": format_time(stamp)}
        for step, stamp in bot.status_changes(now)
    ]
    recordings = [recording for recording in bot.recordings if world.visible_recording(recording.id)]
    data = {
        "id": bot.id,
        "meeting_url": read_meeting_url(request["meeting_url"]),
        "bot_name": request["bot_name"],
        "join_at": None if changes else request["join_at"],
        "recording_config": request["recording_config"],
        "status_changes": changes,
        "recordings": [recording_json(recording, world, origins, embedded=True) for recording in recordings],
        "output_media": request["output_media"],
        "automatic_video_output": request["automatic_video_output"],
        "automatic_audio_output": request["automatic_audio_output"],
        "chat": request["chat"],
        "automatic_leave": request["automatic_leave"],
        "variant": request["variant"],
        "calendar_meetings": [],
        "zoom": request["zoom"],
        "google_meet": request["google_meet"],
        "breakout_room": request["breakout_room"],
        "slack_team": None,
        "metadata": request["metadata"],
    }
    return bot.meeting.shape(data)


def recording_json(
    recording: RecordingState, world: World, origins: Origins, *, embedded: bool = False
) -> dict[str, Any]:
    """Show a recording.

    :param embedded: in a bot, where it has fewer members.
    """
    now = world.now()
    code, sub_code, changed = recording.status(now)
    settled = recording.is_settled(now)
    data: dict[str, Any] = {
        "id": recording.id,
        "created_at": format_time(recording.created_at),
        "started_at": format_time(recording.created_at),
        "completed_at": format_time(recording.bot.stamp(recording.settled)) if settled else None,
        "expires_at": format_time(recording.expires_at) if settled else None,
        "status": {"code": code, "sub_code": sub_code, "updated_at": format_time(changed)},
        "metadata": recording.metadata,
        "media_shortcuts": _shortcuts(recording, world, origins),
    }
    if not embedded:
        data["realtime_endpoints"] = []
        data["bot"] = {"id": recording.bot.id, "metadata": recording.bot.request["metadata"]}
        data["desktop_sdk_upload"] = None
    return recording.spec.shape(data)


def artifact_json(artifact: ArtifactState, world: World, origins: Origins) -> dict[str, Any]:
    """Show an ``audio_separate`` artifact, with a fresh link if it is done."""
    code, sub_code, changed = artifact.status(world.now())
    link = world.download_link("audio_separate", artifact, origins) if code == "done" else None
    data = {
        "id": artifact.id,
        "recording": {"id": artifact.recording.id, "metadata": artifact.recording.metadata},
        "created_at": format_time(artifact.created_at),
        "status": {"code": code, "sub_code": sub_code, "updated_at": format_time(changed)},
        "metadata": artifact.metadata,
        "data": {"download_url": link},
        "format": artifact.spec.format,
    }
    return artifact.spec.shape(data)


def parts_text(artifact: ArtifactState, world: World, origins: Origins) -> Iterator[str]:
    """Write the list of parts piece by piece: it may be a million long."""
    artifact.fetches += 1
    start = artifact.recording.created_at
    separator = "["
    batch: list[str] = []
    for part in artifact.parts():
        spec = part.spec
        absolute = spec.absolute
        if absolute is None:
            absolute = format_time(start + timedelta(seconds=part.relative))
        data = {
            "id": f"{part.id}-{artifact.fetches}" if spec.volatile_id else part.id,
            "participant": None if spec.participant is None else spec.participant.to_json(),
            "start_timestamp": {"absolute": absolute, "relative": part.relative},
            "duration": part.duration,
            "download_url": world.media_link(artifact, part, origins),
        }
        batch.append(separator + json.dumps(spec.shape(data)))
        separator = ", "
        if len(batch) == _BATCH:
            yield "".join(batch)
            batch.clear()
    yield "".join(batch) + ("[]" if separator == "[" else "]")


def participants_json(recording: RecordingState) -> list[Any]:
    """List everybody who was there."""
    return recording.participants()


def participant_events_json(recording: RecordingState) -> list[dict[str, Any]]:
    """List who joined, spoke and left, in order."""
    length = recording.ends - recording.starts
    moments: list[tuple[float, str, dict[str, Any] | None]]
    moments = [(0.0, "join", person) for person in recording.participants()]
    for person, begin, end in _speech(recording):
        moments += [(begin, "speech_on", person), (end, "speech_off", person)]
    moments += [(length, "leave", person) for person in recording.participants()]
    moments.sort(key=lambda moment: moment[0])
    return [
        {
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{recording.id}/event-{number}")),
            "action": action,
            "participant": person,
            "timestamp": _timestamp(recording, at),
            "data": None,
        }
        for number, (at, action, person) in enumerate(moments)
    ]


def speaker_timeline_json(recording: RecordingState) -> list[dict[str, Any]]:
    """List who spoke when."""
    return [
        {
            "participant": person,
            "start_timestamp": _timestamp(recording, begin),
            "end_timestamp": _timestamp(recording, end),
        }
        for person, begin, end in sorted(_speech(recording), key=lambda speech: speech[1])
    ]


def bot_truth(bot: BotState, now: datetime) -> dict[str, Any]:
    """Summarise a bot for the control API."""
    changes = bot.status_changes(now)
    return {
        "id": bot.id,
        "platform": platform_of(bot.request["meeting_url"]),
        "status": changes[-1][0].code if changes else None,
        "start": format_time(bot.start),
        "recordings": [
            {
                "id": recording.id,
                "exists": recording.exists(now),
                "status": recording.status(now)[0],
                "artifacts": [
                    {
                        "id": artifact.id,
                        "format": artifact.spec.format,
                        "listed": artifact.is_listed(now),
                        "status": artifact.status(now)[0],
                        "parts": sum(part.repeat for part in artifact.spec.parts),
                    }
                    for artifact in recording.artifacts
                ],
            }
            for recording in bot.recordings
        ],
    }


def dashboard(bot: BotState, now: datetime) -> str:
    """Show a bot's history and recordings as a page."""
    steps = "".join(
        f"<tr><td>{format_time(at)}<td>{escape(step.code)}<td>{escape(step.sub_code or '')}"
        for step, at in bot.status_changes(now)
    )
    recordings = "".join(
        f"<li><code>{escape(recording.id)}</code> {escape(recording.status(now)[0])}"
        for recording in bot.recordings
        if recording.exists(now)
    )
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Bot in the simulator</title>"
        "<style>body{font:16px/1.5 system-ui;margin:2rem;color-scheme:light dark}td{padding-right:2rem}</style>"
        f"<h1>Bot <code>{escape(bot.id)}</code></h1><p>In the Recall.ai simulator."
        f"<h2>Status</h2><table>{steps}</table><h2>Recordings</h2><ul>{recordings}</ul>"
    )


def _shortcuts(recording: RecordingState, world: World, origins: Origins) -> dict[str, Any]:
    config = recording.bot.request["recording_config"] or {}
    done = recording.status(world.now())[0] == "done"
    shortcuts: dict[str, Any] = dict.fromkeys(
        ("video_mixed", "audio_mixed", "transcript", "participant_events", "meeting_metadata")
    )
    if config.get("participant_events") is not None:
        kinds = ("participant_events", "speaker_timeline", "participants")
        links = {
            f"{kind}_download_url": world.download_link(kind, recording, origins) if done else None for kind in kinds
        }
        shortcuts["participant_events"] = _shortcut(recording, "participant_events", world, links)
    if config.get("meeting_metadata") is not None:
        title = recording.spec.title or recording.bot.meeting.title
        shortcuts["meeting_metadata"] = _shortcut(recording, "meeting_metadata", world, {"title": title, "zoom": None})
    return shortcuts


def _shortcut(recording: RecordingState, kind: str, world: World, data: dict[str, Any]) -> dict[str, Any]:
    code, sub_code, changed = recording.status(world.now())
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{recording.id}/{kind}")),
        "created_at": format_time(recording.created_at),
        "status": {"code": code, "sub_code": sub_code, "updated_at": format_time(changed)},
        "metadata": {},
        "data": data,
    }


def _speech(recording: RecordingState) -> list[tuple[dict[str, Any] | None, float, float]]:
    spoken = []
    for artifact in recording.artifacts[:1]:
        for part in artifact.parts():
            person = None if part.spec.participant is None else part.spec.participant.to_json()
            spoken.append((person, part.relative, part.relative + part.duration))
    return spoken


def _timestamp(recording: RecordingState, relative: float) -> dict[str, Any]:
    moment = recording.created_at + timedelta(seconds=relative)
    return {"absolute": format_time(moment), "relative": relative}
