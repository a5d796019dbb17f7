"""The state of the pretended workspace: bots, recordings, artifacts and parts, all derived from one virtual clock."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from include.simulator import scenario
from include.simulator.audio import BYTES_PER_SECOND, Body
from include.simulator.links import LinkSigner, Origins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEDULED_AHEAD = timedelta(minutes=10)
ARTIFACT_KINDS = {"audio_separate_raw": "raw", "audio_separate_mp3": "ogg"}
STATUS_MEDIA_EXPIRED = "media_expired"
_SETTLE = 1.0


@dataclass
class Settings:
    """What can be chosen at start and changed through ``POST /_sim/settings``.

    :param api_key: the key that the API accepts.
    :param speed: virtual seconds per real second.
    :param link_seconds: lifetime of download links, in virtual seconds.
    :param page_size: entries per page of a list.
    :param deleted: whether deleted things stay ``listed`` with the status ``deleted``, or are ``gone`` (404).
    :param rate_limit: whether requests above the documented rates are refused.
    :param strict_rate: count refused requests too, so a client that ignores ``Retry-After`` is never let in.
    :param webhook_url: where events are told; empty for nowhere.
    :param webhook_secrets: what they are signed with; each gives a signature.
    :param webhook_headers: which family of headers they carry.
    :param webhook_retry_speed: how much faster than Svix a delivery is tried again.
    """

    api_key: str = "simulator-key"
    speed: float = 1.0
    link_seconds: float = 18_000.0
    page_size: int = 100
    deleted: Literal["listed", "gone"] = "listed"
    rate_limit: bool = True
    strict_rate: bool = False
    webhook_url: str = ""
    webhook_secrets: list[str] = field(default_factory=list)
    webhook_headers: Literal["webhook", "svix", "both"] = "webhook"
    webhook_retry_speed: float = 1.0


class Clock:
    """Virtual time: the wall clock at the start, then monotonic time at a chosen speed, plus every jump."""

    def __init__(self, speed: float) -> None:
        self._origin = datetime.now(timezone.utc)
        self._since = time.monotonic()
        self._speed = speed

    def now(self) -> datetime:
        """Give the virtual moment."""
        return self._origin + timedelta(seconds=(time.monotonic() - self._since) * self._speed)

    def jump(self, seconds: float) -> None:
        """Move on by that many virtual seconds at once."""
        self._origin += timedelta(seconds=seconds)

    def set_speed(self, speed: float) -> None:
        """Go on at another speed from here."""
        self._origin, self._since, self._speed = self.now(), time.monotonic(), speed


@dataclass(frozen=True)
class PartState:
    """One part with everything filled in.

    :ivar key: its name on the media host, unique in the artifact.
    """

    key: str
    id: str
    spec: scenario.Part
    audio: scenario.Audio
    relative: float

    @property
    def body(self) -> Body:
        """The bytes."""
        return scenario.body_of(self.audio)

    @property
    def duration(self) -> float:
        """Seconds."""
        if self.spec.duration is not None:
            return self.spec.duration
        return self.body.length / BYTES_PER_SECOND


@dataclass
class ArtifactState:
    """One ``audio_separate`` artifact."""

    spec: scenario.Artifact
    recording: RecordingState
    id: str
    metadata: scenario.Metadata | None
    deleted_at: datetime | None = None
    fetches: int = 0

    @property
    def created_at(self) -> datetime:
        """When it began, by its own timestamp."""
        return self.recording.created_at

    @property
    def settled(self) -> float:
        """The second of the meeting at which it reaches its final status."""
        return self.recording.settled + self.spec.done_after

    def is_listed(self, now: datetime) -> bool:
        """Tell whether the API knows it yet."""
        after = self.spec.listed_after
        begin = self.recording.starts if after is None else self.recording.ends + after
        return self.recording.bot.happens(begin) <= now

    def status(self, now: datetime) -> tuple[str, str | None, datetime]:
        """Give code, sub-code and time of the last change."""
        code, _, changed = self.recording.status(now)
        if code == "deleted":
            return code, None, changed
        if self.deleted_at is not None:
            return "deleted", None, self.deleted_at
        bot = self.recording.bot
        if now < bot.happens(self.settled):
            return "processing", None, self.created_at
        return self.spec.status, self.spec.sub_code, bot.stamp(self.settled)

    def parts(self) -> Iterator[PartState]:
        """Yield the parts, each made when it is needed: a list may be a million long."""
        for group in range(len(self.spec.parts)):
            for copy in range(self.spec.parts[group].repeat):
                yield self._part(group, copy)

    def part(self, key: str) -> PartState | None:
        """Find a part by its name on the media host."""
        group, _, copy = key.partition("-")
        if not (group.isdigit() and copy.isdigit() and int(group) < len(self.spec.parts)):
            return None
        return self._part(int(group), int(copy)) if int(copy) < self.spec.parts[int(group)].repeat else None

    def _part(self, group: int, copy: int) -> PartState:
        spec = self.spec.parts[group]
        key = f"{group}-{copy}"
        identity = spec.id
        if identity is None:
            identity = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.id}/{key}"))
        elif copy:
            identity = f"{identity}-{copy}"
        sound = spec.audio
        if copy and isinstance(sound, scenario.GeneratedAudio):
            sound = sound.model_copy(update={"seed": sound.seed + copy})
        return PartState(key, identity, spec, sound, spec.relative + copy * spec.spacing)


@dataclass
class RecordingState:
    """One recording."""

    spec: scenario.Recording
    bot: BotState
    id: str
    starts: float
    ends: float
    metadata: scenario.Metadata | None
    artifacts: list[ArtifactState] = field(default_factory=list)
    deleted_at: datetime | None = None

    @property
    def created_at(self) -> datetime:
        """When it began, by its own timestamp."""
        return self.bot.stamp(self.starts)

    @property
    def settled(self) -> float:
        """The second of the meeting at which it reaches its final status."""
        return self.ends + self.spec.done_after

    @property
    def expires_at(self) -> datetime | None:
        """When its media go, or None under the retention ``forever``."""
        if self.spec.expires_at is not None:
            return self.spec.expires_at
        retention = (self.bot.request.get("recording_config") or {}).get("retention")
        if not retention or retention.get("type") != "timed":
            return None
        return self.bot.stamp(self.settled) + timedelta(hours=retention["hours"])

    def exists(self, now: datetime) -> bool:
        """Tell whether it has begun."""
        return self.bot.happens(self.starts) <= now

    def is_settled(self, now: datetime) -> bool:
        """Tell whether it is past its processing."""
        return self.bot.happens(self.settled) <= now

    def gone_at(self, now: datetime) -> datetime | None:
        """Give the moment at which its media went, or None while they are there."""
        expires = self.expires_at
        moments = [moment for moment in (self.deleted_at, expires) if moment is not None and moment <= now]
        return min(moments) if moments else None

    def status(self, now: datetime) -> tuple[str, str | None, datetime]:
        """Give code, sub-code and time of the last change."""
        gone = self.gone_at(now)
        if gone is not None:
            return "deleted", None, gone
        if not self.is_settled(now):
            return "processing", None, self.created_at
        return self.spec.status, self.spec.sub_code, self.bot.stamp(self.settled)

    def participants(self) -> list[dict[str, Any]]:
        """List everybody who was there."""
        if self.spec.participants is not None:
            return [person.to_json() for person in self.spec.participants]
        people: dict[int | None, dict[str, Any]] = {}
        for artifact in self.artifacts:
            for part in artifact.spec.parts:
                if part.participant is not None:
                    people.setdefault(part.participant.id, part.participant.to_json())
        return list(people.values())


@dataclass
class BotState:
    """One bot and the meeting that it attends.

    :ivar request: the fields of Create Bot with the defaults filled in.
    :ivar start: second 0 of the meeting.
    """

    meeting: scenario.Meeting
    request: dict[str, Any]
    id: str
    start: datetime
    steps: list[scenario.Step]
    scheduled: bool
    recordings: list[RecordingState] = field(default_factory=list)

    def happens(self, at: float) -> datetime:
        """Give the moment at which a second of the meeting is reached."""
        return self.start + timedelta(seconds=at / self.meeting.pace)

    def stamp(self, at: float) -> datetime:
        """Give the timestamp that the API shows for a second of the meeting."""
        return self.start + timedelta(seconds=at)

    def dispatched(self, now: datetime) -> bool:
        """Tell whether it is too late to change or cancel it."""
        return not self.scheduled or self.start <= now

    def status_changes(self, now: datetime) -> list[tuple[scenario.Step, datetime]]:
        """List the status changes so far, each with its timestamp."""
        changes = [(step, self.stamp(step.at)) for step in self.steps if self.happens(step.at) <= now]
        media = [recording.status(now) for recording in self.recordings]
        if changes and media and all(code == "deleted" for code, _, _ in media):
            latest = max(stamp for _, stamp in changes)
            step = scenario.Step(at=0.0, code=STATUS_MEDIA_EXPIRED)
            changes.append((step, max(max(moment for _, _, moment in media), latest + timedelta(microseconds=1))))
        return changes


class World:
    """Everything in the workspace.

    :param settings: shared with the applications, which may change them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.signer = LinkSigner()
        self.reset()

    def reset(self) -> None:
        """Forget all bots and go back to the wall clock."""
        self.clock = Clock(self.settings.speed)
        self.bots: dict[str, BotState] = {}
        self.recordings: dict[str, RecordingState] = {}
        self.artifacts: dict[str, ArtifactState] = {}
        self.waiting: dict[str, scenario.Meeting] = {}

    def now(self) -> datetime:
        """Give the virtual moment."""
        return self.clock.now()

    def create_bot(self, request: dict[str, Any]) -> BotState:
        """Send a bot to a meeting: the one that waits at its URL, or the demo.

        :param request: checked fields of Create Bot with the defaults filled in.
        """
        now = self.now()
        meeting = self.waiting.get(request["meeting_url"]) or scenario.demo()
        join_at = request["join_at"]
        start = max(now, parse_time(join_at)) if join_at else now
        return self._attend(meeting, request, start, str(uuid.uuid4()), scheduled=start - now > SCHEDULED_AHEAD)

    def add_meeting(self, meeting: scenario.Meeting, request: dict[str, Any]) -> BotState | None:
        """Make a meeting of any shape.

        :param meeting: the scenario.
        :param request: the fields of Create Bot that its bot would have been made with.
        :return: the bot, or None where it is still to be created.
        :raises ValueError: when an id is in use or a demo clip does not exist.
        """
        meeting.check_audio()
        if meeting.dispatch == "on_create":
            self.waiting[meeting.meeting_url] = meeting
            return None
        now = self.now()
        start = meeting.created_at or meeting.join_at or (now if meeting.live else None)
        scheduled = meeting.join_at is not None and meeting.join_at - now > SCHEDULED_AHEAD
        bot_id = meeting.bot_id or str(uuid.uuid4())
        bot = self._attend(meeting, request, start or now, bot_id, scheduled=scheduled)
        if start is None:
            finals = [step.at for step in bot.steps]
            for recording in bot.recordings:
                finals += [recording.settled, *(artifact.settled for artifact in recording.artifacts)]
            bot.start = now - timedelta(seconds=(max(finals, default=0.0) + _SETTLE) / meeting.pace)
        return bot

    def update_bot(self, bot: BotState, request: dict[str, Any]) -> None:
        """Change a bot that has not been dispatched: it starts anew, under the same id."""
        meeting = self.waiting.get(request["meeting_url"]) or scenario.demo()
        join_at = request["join_at"]
        self.cancel(bot)
        start = max(self.now(), parse_time(join_at)) if join_at else self.now()
        fresh = self._attend(meeting, request, start, bot.id, scheduled=True)
        bot.__dict__.update(fresh.__dict__)
        for recording in bot.recordings:
            recording.bot = bot
        self.bots[bot.id] = bot

    def cancel(self, bot: BotState) -> None:
        """Forget a bot and everything under it."""
        del self.bots[bot.id]
        for recording in bot.recordings:
            self._drop(recording)

    def leave(self, bot: BotState) -> None:
        """End the call now; the audio of what was being recorded stays whole."""
        at = (self.now() - bot.start).total_seconds() * bot.meeting.pace
        bot.steps = [step for step in bot.steps if step.at <= at]
        bot.steps.append(scenario.Step(at=at, code="call_ended", sub_code="bot_received_leave_call"))
        bot.steps.append(scenario.Step(at=at + 2.0, code="done"))
        for recording in list(bot.recordings):
            recording.ends = min(recording.ends, at)
            if recording.starts > at:
                bot.recordings.remove(recording)
                self._drop(recording)

    def visible_recording(self, recording_id: str) -> RecordingState | None:
        """Find a recording that the API shows."""
        recording = self.recordings.get(recording_id)
        now = self.now()
        if recording is None or not recording.exists(now) or self._hidden(recording.status(now)[0]):
            return None
        return recording

    def visible_artifact(self, artifact_id: str) -> ArtifactState | None:
        """Find an artifact that the API shows."""
        artifact = self.artifacts.get(artifact_id)
        now = self.now()
        if artifact is None or not artifact.is_listed(now) or self._hidden(artifact.status(now)[0]):
            return None
        return artifact

    def media_object(self, path: str) -> tuple[ArtifactState, PartState] | None:
        """Find what the media host keeps under a path, unless it has been deleted."""
        artifact_id, _, key = path.strip("/").partition("/")
        artifact = self.artifacts.get(artifact_id)
        part = artifact.part(key) if artifact is not None else None
        if artifact is None or part is None or artifact.status(self.now())[0] == "deleted":
            return None
        return artifact, part

    def media_link(self, artifact: ArtifactState, part: PartState, origins: Origins) -> str:
        """Sign a fresh link to the body of a part."""
        path = f"/{artifact.id}/{part.key}"
        seconds = artifact.spec.part_link_seconds
        if seconds is None:
            seconds = self._link_seconds(artifact)
        return f"{origins.media}{path}?{self.signer.media_query(path, self.now() + timedelta(seconds=seconds))}"

    def download_link(self, kind: str, target: RecordingState | ArtifactState, origins: Origins) -> str:
        """Sign a fresh link to a JSON download."""
        seconds = self._link_seconds(target) if isinstance(target, ArtifactState) else self.settings.link_seconds
        token = self.signer.token(kind, target.id, self.now() + timedelta(seconds=seconds))
        return f"{origins.api}/api/v1/download/{kind}?token={token}"

    def _drop(self, recording: RecordingState) -> None:
        del self.recordings[recording.id]
        for artifact in recording.artifacts:
            del self.artifacts[artifact.id]

    def _link_seconds(self, artifact: ArtifactState) -> float:
        own = artifact.spec.link_seconds
        return self.settings.link_seconds if own is None else own

    def _hidden(self, status: str) -> bool:
        return status == "deleted" and self.settings.deleted == "gone"

    def _attend(
        self, meeting: scenario.Meeting, request: dict[str, Any], start: datetime, bot_id: str, *, scheduled: bool
    ) -> BotState:
        config = request["recording_config"]
        records = config is not None and config["retention"] is not None
        specs = meeting.recordings
        if specs is None:
            specs = [scenario.Recording(participants=scenario.demo_participants())]
        lengths = [_length(spec) for spec in specs]
        steps = meeting.timeline
        if steps is None:
            steps = scenario.usual_timeline(lengths or [60.0])
        if not records:
            steps = [step for step in steps if step.code != "in_call_recording"]
        if not records or (meeting.recordings is None and all(step.code != "in_call_recording" for step in steps)):
            specs = []
        bot = BotState(meeting, request, bot_id, start, steps, scheduled)
        spans = _spans(specs, lengths, steps)
        for spec, (begin, end) in zip(specs, spans, strict=False):
            bot.recordings.append(self._record(bot, spec, begin, end, fresh=meeting.dispatch == "on_create"))
        self._register(bot)
        return bot

    def _record(
        self, bot: BotState, spec: scenario.Recording, begin: float, end: float, *, fresh: bool
    ) -> RecordingState:
        config: Mapping[str, Any] = bot.request.get("recording_config") or {}
        identity = None if fresh else spec.id
        metadata = spec.metadata if spec.metadata is not None else config.get("metadata", {})
        recording = RecordingState(spec, bot, identity or str(uuid.uuid4()), begin, end, metadata)
        artifacts = spec.artifacts
        if artifacts is None:
            artifacts = [
                scenario.Artifact(
                    format=form,
                    metadata=config[kind].get("metadata", {}),
                    done_after=8.0,
                    parts=scenario.demo_parts(encoded=form != "raw"),
                )
                for kind, form in ARTIFACT_KINDS.items()
                if config.get(kind) is not None
            ]
        for artifact in artifacts:
            identity = None if fresh else artifact.id
            recording.artifacts.append(
                ArtifactState(artifact, recording, identity or str(uuid.uuid4()), artifact.metadata)
            )
        return recording

    def _register(self, bot: BotState) -> None:
        artifacts = [artifact for recording in bot.recordings for artifact in recording.artifacts]
        for known, new in (
            (self.bots, [bot.id]),
            (self.recordings, [recording.id for recording in bot.recordings]),
            (self.artifacts, [artifact.id for artifact in artifacts]),
        ):
            taken = [identity for identity in new if identity in known or new.count(identity) > 1]
            if taken:
                raise ValueError(f"id {taken[0]} is in use")
        self.bots[bot.id] = bot
        self.recordings.update((recording.id, recording) for recording in bot.recordings)
        self.artifacts.update((artifact.id, artifact) for artifact in artifacts)


def _length(spec: scenario.Recording) -> float:
    if spec.artifacts is None:
        return scenario.demo_length()
    ends = [1.0]
    for artifact in spec.artifacts:
        for part in artifact.parts:
            duration = part.duration
            if duration is None:
                duration = scenario.body_of(part.audio).length / BYTES_PER_SECOND
            ends.append(part.relative + (part.repeat - 1) * part.spacing + duration)
    return max(ends)


def _spans(
    specs: list[scenario.Recording], lengths: list[float], steps: list[scenario.Step]
) -> list[tuple[float, float]]:
    """Work out when each recording begins and ends, where the scenario does not say."""
    marks = sorted(step.at for step in steps if step.code == "in_call_recording")
    stops = sorted(step.at for step in steps if step.code in ("call_ended", "done", "fatal"))
    begins: list[float] = []
    for index, spec in enumerate(specs):
        mark = marks[index] if index < len(marks) else (begins[-1] + lengths[index - 1] if begins else 0.0)
        begins.append(mark if spec.starts is None else spec.starts)
    spans = []
    for index, spec in enumerate(specs):
        begin = begins[index]
        later = [at for at in [*begins[index + 1 :][:1], *stops] if at > begin]
        end = min(later) if later else begin + lengths[index]
        spans.append((begin, end if spec.ends is None else spec.ends))
    return spans


def parse_time(text: str) -> datetime:
    """Read an ISO 8601 timestamp; without an offset it is UTC.

    :raises ValueError: when it is none.
    """
    # Python 3.10 reads neither Z nor fractions of other than 3 or 6 digits.
    plain = re.sub(r"\.(\d+)", lambda found: "." + found[1][:6].ljust(6, "0"), text.strip())
    moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", plain))
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


def format_time(moment: datetime | None) -> str | None:
    """Write a timestamp as the API does: UTC, microseconds, ``Z``."""
    if moment is None:
        return None
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


PLATFORMS = {
    "zoom.us": "zoom",
    "meet.google.com": "google_meet",
    "teams.microsoft.com": "microsoft_teams",
    "teams.live.com": "microsoft_teams_live",
    "webex.com": "webex",
    "gotomeeting.com": "goto_meeting",
    "goto.com": "goto_meeting",
    "slack.com": "slack_huddle_observer",
}


def platform_of(url: str) -> str | None:
    """Tell the platform of a meeting by its host."""
    host = urlsplit(url).hostname or ""
    return next((name for suffix, name in PLATFORMS.items() if host == suffix or host.endswith("." + suffix)), None)


def read_meeting_url(url: str) -> dict[str, Any] | None:
    """Give the object that the API returns for a meeting URL, or null for an unknown platform."""
    platform = platform_of(url)
    parts = urlsplit(url)
    path = [piece for piece in parts.path.split("/") if piece]
    last = path[-1] if path else None
    if platform == "zoom":
        password = parse_qs(parts.query).get("pwd", [None])[0]
        return {"platform": platform, "meeting_id": last, "meeting_password": password}
    if platform in ("google_meet", "goto_meeting", "slack_huddle_observer"):
        return {"platform": platform, "meeting_id": last}
    if platform in ("microsoft_teams", "microsoft_teams_live"):
        names = (
            "meeting_id",
            "meeting_password",
            "organizer_id",
            "tenant_id",
            "message_id",
            "thread_id",
            "business_meeting_id",
            "business_meeting_password",
        )
        empty: dict[str, Any] = dict.fromkeys(names)
        return {"platform": platform, **empty, "thread_id": path[-2] if len(path) > 1 else None, "message_id": last}
    if platform == "webex":
        subdomain = (parts.hostname or "").split(".")[0]
        return {"platform": platform, "meeting_subdomain": subdomain, "meeting_mtid": None, "meeting_path": last}
    return None
