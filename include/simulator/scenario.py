"""What happens in a meeting, as typed data: the input of ``POST /_sim/meetings`` and of the demo.

Times without a date are seconds. Those of a meeting count from its start (the bot setting out to join), those of a
part from the start of its recording.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from include.simulator import audio

Metadata = dict[str, str | None]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def _compiles(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""


class Model(BaseModel):
    """A strict model: a misspelt key is refused, so a scenario never silently means something else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DemoAudio(Model):
    """A part of the demo meeting.

    :param clip: a key of ``parts`` in ``demo/meeting.json``.
    :param encoded: the Ogg Vorbis or MP3 version instead of PCM.
    """

    clip: str
    encoded: bool = False


class GeneratedAudio(Model):
    """Position-dependent bytes of any size; see :class:`include.simulator.audio.Generated`.

    :param seed: chooses the bytes.
    :param bytes: the length.
    :param head_hex: what the body starts with, in hexadecimal.
    """

    seed: int
    bytes: int = Field(ge=0)
    head_hex: str = ""


class ToneAudio(Model):
    """A sine wave: 16-bit PCM, 16 kHz, mono.

    :param tone_hz: a whole number of hertz.
    :param seconds: the length.
    """

    tone_hz: int = Field(ge=1, le=8000)
    seconds: float = Field(ge=0)


class HexAudio(Model):
    """Literal bytes.

    :param hex: in hexadecimal; empty for an empty body.
    """

    hex: str


Audio = DemoAudio | GeneratedAudio | ToneAudio | HexAudio


@functools.lru_cache(maxsize=1024)
def body_of(spec: Audio) -> audio.Body:
    """Make the body that a specification asks for.

    :raises ValueError: when the clip does not exist or the hexadecimal is odd.
    """
    if isinstance(spec, DemoAudio):
        try:
            return audio.demo_clip_encoded(spec.clip) if spec.encoded else audio.demo_clip(spec.clip)
        except KeyError:
            raise ValueError(f"no demo clip is called {spec.clip!r}") from None
    if isinstance(spec, GeneratedAudio):
        return audio.Generated(spec.seed, spec.bytes, bytes.fromhex(spec.head_hex))
    if isinstance(spec, ToneAudio):
        return audio.Tone(spec.tone_hz, spec.seconds)
    return audio.Fixed(bytes.fromhex(spec.hex))


@functools.lru_cache(maxsize=65_536)
def digest_of(spec: Audio, algorithm: str) -> bytes:
    """Digest the whole body that a specification asks for.

    :param algorithm: ``crc32``, or a name that ``hashlib`` knows.
    """
    return audio.digest_of(body_of(spec), algorithm)


class Shaped(Model):
    """An object of the API whose JSON can be bent.

    :param overrides: top-level keys that replace the simulator's own; unknown keys are added.
    :param omit: top-level keys to leave out.
    """

    overrides: dict[str, Any] = {}
    omit: list[str] = []

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        """Apply the overrides and leave out what is to be left out."""
        return {key: value for key, value in {**data, **self.overrides}.items() if key not in self.omit}


class Participant(BaseModel):
    """A person in the meeting. Further keys are kept as they are.

    ``email`` is in the JSON only where it was given, as in the API.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    id: int | None
    name: str | None = None
    is_host: bool | None = None
    platform: str | None = None
    extra_data: Any = None

    def to_json(self) -> dict[str, Any]:
        """Give the object as the API shows it."""
        return self.model_dump(mode="json")


class Part(Shaped):
    """One stretch of one participant's audio.

    :param id: defaults to a UUID.
    :param participant: null is allowed.
    :param relative: start, seconds from the start of the recording; may be negative.
    :param absolute: start as a timestamp; computed by default.
    :param duration: seconds; computed by default as if the body were 16-bit PCM at 16 kHz.
    :param audio: the bytes.
    :param repeat: make this many alike: ids get ``-<n>``, generated seeds count up, starts move by ``spacing``.
    :param spacing: seconds between the starts of repeated parts.
    :param media_type: ``Content-Type`` of the body; null sends none.
    :param etag: ``md5`` (the quoted MD5 of the body, as after a single PUT), ``opaque`` (as after a multipart upload),
        ``weak`` or ``none``. By default ``md5`` up to 8 MiB and ``opaque`` above.
    :param checksum: the header that states a checksum of the body, if any.
    :param content_length: false ends the body by closing the connection.
    :param ranges: false ignores ``Range``.
    :param volatile_id: give another id each time that the list of parts is fetched.
    """

    id: str | None = None
    participant: Participant | None = None
    relative: float = 0.0
    absolute: str | None = None
    duration: float | None = None
    audio: Audio = GeneratedAudio(seed=1, bytes=32_000)
    repeat: int = Field(default=1, ge=1)
    spacing: float = 1.0
    media_type: str | None = "auto"
    etag: Literal["md5", "opaque", "weak", "none"] | None = None
    checksum: Literal["none", "sha256", "crc32", "md5"] = "none"
    content_length: bool = True
    ranges: bool = True
    volatile_id: bool = False


class Artifact(Shaped):
    """One ``audio_separate`` artifact.

    :param id: defaults to a UUID.
    :param format: ``raw``, ``ogg`` or anything else.
    :param status: where it ends up: ``done``, ``failed``, ``deleted``, ``processing`` (for ever) or an unknown one.
    :param sub_code: of that status.
    :param listed_after: seconds from the end of the recording until it is listed at all; by default it is listed from
        the start of the recording.
    :param done_after: seconds from the recording's final status until the artifact has its own; ``processing`` before.
    :param link_seconds: lifetime of its download link; the simulator's setting by default.
    :param part_link_seconds: lifetime of the links to the parts; as ``link_seconds`` by default.
    """

    id: Id | None = None
    format: str = "raw"
    status: str = "done"
    sub_code: str | None = None
    metadata: Metadata | None = {}
    listed_after: float | None = None
    done_after: float = 2.0
    link_seconds: float | None = None
    part_link_seconds: float | None = None
    parts: list[Part] = []


class Recording(Shaped):
    """One recording of a meeting.

    :param id: defaults to a UUID.
    :param starts: by default the matching ``in_call_recording`` step, else the start of the meeting.
    :param ends: by default the next ``in_call_recording`` or ``call_ended`` step, else the end of its last part.
    :param status: where it ends up: ``done``, ``failed``, ``deleted``, ``paused``, ``processing`` or an unknown one.
    :param sub_code: of that status.
    :param done_after: seconds from ``ends`` until that status; ``processing`` before.
    :param metadata: the one in ``recording_config`` by default.
    :param expires_at: by default what the retention in ``recording_config`` says. From then on the media are gone.
    :param title: of the meeting, for this recording only.
    :param participants: everybody in the participants list; by default those who have a part.
    :param artifacts: by default one for each kind that ``recording_config`` asks for, with the demo's parts.
    """

    id: Id | None = None
    starts: float | None = None
    ends: float | None = None
    status: str = "done"
    sub_code: str | None = None
    done_after: float = 2.0
    metadata: Metadata | None = None
    expires_at: AwareDatetime | None = None
    title: str | None = None
    participants: list[Participant] | None = None
    artifacts: list[Artifact] | None = None


class Step(Model):
    """One status change of the bot.

    :param at: seconds from the start of the meeting.
    """

    at: float
    code: str
    sub_code: str | None = None
    message: str | None = None


class Meeting(Shaped):
    """A meeting and the bot that attends it. ``overrides`` and ``omit`` bend the bot's JSON.

    :param dispatch: ``now`` makes the bot; ``on_create`` waits, and every bot later sent to ``meeting_url`` through the
        API lives this meeting, with its own metadata and recording_config, and fresh ids.
    :param bot_id: defaults to a UUID.
    :param created_at: start of the meeting. By default it has just ended, or starts now if ``live``.
    :param live: start now, and play as the clock runs.
    :param pace: how many times faster the meeting plays than its own timestamps say.
    :param timeline: the bot's status changes; a usual one by default.
    :param recordings: one, with the demo's parts, by default.
    :param recording_config: what the bot asked for; ``omit: ["recording_config"]`` hides it.
    """

    dispatch: Literal["now", "on_create"] = "now"
    bot_id: Id | None = None
    title: str | None = "Quarterly planning"
    meeting_url: str = "https://teams.microsoft.com/l/meetup-join/19%3ameeting_DEMO%40thread.v2/0"
    bot_name: str = "Meeting Notetaker"
    metadata: Metadata = {}
    recording_config: dict[str, Any] | None = {"audio_separate_raw": {}}
    join_at: AwareDatetime | None = None
    created_at: AwareDatetime | None = None
    live: bool = False
    pace: float = Field(default=1.0, gt=0)
    timeline: list[Step] | None = None
    recordings: list[Recording] | None = None

    def check_audio(self) -> None:
        """Make every body once, so that a wrong one is noticed now.

        :raises ValueError: when a clip does not exist or hexadecimal is odd.
        """
        for recording in self.recordings or ():
            for artifact in recording.artifacts or ():
                for part in artifact.parts:
                    body_of(part.audio)


def usual_timeline(lengths: list[float]) -> list[Step]:
    """Give the status changes of a meeting in which everything goes well.

    :param lengths: seconds of each recording, one after the other.
    """
    steps = [
        Step(at=0.0, code="joining_call"),
        Step(at=8.0, code="in_waiting_room"),
        Step(at=16.0, code="in_call_not_recording"),
    ]
    at = 20.0
    for length in lengths:
        steps.append(Step(at=at, code="in_call_recording"))
        at += length
    steps.append(Step(at=at, code="call_ended", sub_code="timeout_exceeded_everyone_left"))
    steps.append(Step(at=at + 2.0, code="done"))
    return steps


def demo_participants() -> list[Participant]:
    """Give the six people of the demo meeting."""
    return [Participant(**person) for person in audio.demo_meeting()["participants"]]


def demo_parts(*, encoded: bool) -> list[Part]:
    """Give the parts of the demo meeting.

    :param encoded: as Ogg Vorbis and MP3 instead of PCM.
    """
    meeting = audio.demo_meeting()
    people = {person.id: person for person in demo_participants()}
    parts = []
    for name, turns in meeting["parts"].items():
        first = meeting["turns"][turns[0]]
        seconds = audio.demo_clip(name).length / audio.BYTES_PER_SECOND
        parts.append(
            Part(
                participant=people[first["speaker"]],
                relative=first["at"],
                duration=round(seconds, 4),
                audio=DemoAudio(clip=name, encoded=encoded),
            )
        )
    return parts


def demo_length() -> float:
    """Give the seconds in which the demo meeting is recorded."""
    return float(audio.demo_meeting()["length"])


DEMO_PACE = 10.0


def demo() -> Meeting:
    """Give the meeting that a bot attends unless another one waits for it: two minutes, played in twelve seconds."""
    return Meeting(
        title=audio.demo_meeting()["title"],
        live=True,
        pace=DEMO_PACE,
        recordings=[Recording(done_after=4.0, participants=demo_participants())],
    )
