"""What the API sends, as typed records.

Statuses, sub-codes, formats and platforms are open sets: they stay strings, whatever they hold. Unknown keys are
ignored, and optional fields that are missing or odd become ``None``. A field that nothing works without raises
:class:`~include.recall.errors.RecallSchemaError` with its path.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex
from urllib.parse import urlsplit

from include.recall.errors import RecallSchemaError
from include.recall.support import platform_of

if TYPE_CHECKING:
    from collections.abc import Mapping

UNKNOWN_PARTICIPANT = -1

BOT_FINISHED = frozenset({"done", "fatal", "analysis_done", "analysis_failed", "media_expired"})
DOCUMENTS = ("participants", "participant_events", "speaker_timeline")
"""What Recall lists about a recording besides its audio, each a small JSON list."""

RECORDING_SETTLED = frozenset({"done", "failed", "deleted"})

_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,]([0-9]+))?(Z|z|[+-][0-9]{2}:?[0-9]{2})?"
)


class SignedLink:
    """A URL that is a secret for as long as it works.

    Neither ``repr`` nor ``str`` shows it, pickling is refused, and JSON can't encode it, so it stays out of logs and
    XCom.

    :param url: the link as the API gave it.
    """

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def reveal(self) -> str:
        """Return the URL itself, for the one who fetches it."""
        return self._url

    @property
    def host(self) -> str:
        """The link's host, which may be shown; empty where it has none."""
        try:
            return urlsplit(self._url).hostname or ""
        except ValueError:
            return ""

    def __repr__(self) -> str:
        return "SignedLink(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SignedLink) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __copy__(self) -> SignedLink:
        return self

    def __deepcopy__(self, memo: object) -> SignedLink:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a signed link is a secret and is not pickled; ask the API for a fresh one")


@dataclass(frozen=True)
class StatusChange:
    """One entry of a bot's history."""

    code: str
    sub_code: str | None
    message: str | None
    created_at: datetime

    @classmethod
    def parse(cls, data: object, path: str = "") -> StatusChange:
        """Read one entry.

        :raises RecallSchemaError: it has no code, or no time.
        """
        fields = _object(data, path)
        return cls(
            code=_text(fields, "code", path),
            sub_code=_optional_text(fields.get("sub_code")),
            message=_optional_text(fields.get("message")),
            created_at=_time(fields, "created_at", path),
        )


@dataclass(frozen=True)
class Recording:
    """One recording of a meeting, as a bot embeds it or as it stands alone.

    :param status: ``processing``, ``paused``, ``done``, ``failed``, ``deleted`` or newer; ``unknown`` where it is null.
    :param bot_id: ``None`` where nothing says who recorded.
    :param expires_at: when Recall deletes it; ``None`` if never.
    :param bot_metadata: the metadata of that bot.
    :param platform: known only for a recording that came with its bot.
    :param documents: links to the lists about it, by the names in :data:`DOCUMENTS`, as far as there are any.
    """

    id: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None
    status: str
    sub_code: str | None
    bot_id: str | None
    metadata: Mapping[str, str | None]
    title: str | None
    platform: str | None
    documents: Mapping[str, SignedLink]
    bot_metadata: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Its status won't become another one, save for ``deleted``."""
        return self.status in RECORDING_SETTLED

    @classmethod
    def parse(cls, data: object, path: str = "", *, bot_id: str | None = None) -> Recording:
        """Read a recording.

        :param bot_id: the bot that it was asked for by, where the answer doesn't name it.
        :raises RecallSchemaError: it has no id, no status or no ``created_at``.
        """
        fields = _object(data, path)
        status, sub_code = _status(fields, path)
        links = {
            name: _dig(fields, "media_shortcuts", "participant_events", "data", f"{name}_download_url")
            for name in DOCUMENTS
        }
        return cls(
            id=_text(fields, "id", path),
            created_at=_time(fields, "created_at", path),
            started_at=_optional_time(fields.get("started_at")),
            completed_at=_optional_time(fields.get("completed_at")),
            expires_at=_optional_time(fields.get("expires_at")),
            status=status,
            sub_code=sub_code,
            bot_id=_optional_text(_dig(fields, "bot", "id")) or bot_id,
            metadata=_metadata(fields),
            title=_optional_text(_dig(fields, "media_shortcuts", "meeting_metadata", "data", "title")),
            platform=None,
            documents={name: SignedLink(link) for name, link in links.items() if isinstance(link, str) and link},
            bot_metadata=_metadata(bot if isinstance(bot := fields.get("bot"), dict) else {}),
        )

    def of(self, bot: Bot) -> Recording:
        """Return the recording with what only its bot knows."""
        return replace(self, bot_id=bot.id, platform=bot.platform, bot_metadata=bot.metadata)


@dataclass(frozen=True)
class Bot:
    """A bot with its history and recordings.

    :param meeting_url: Recall's parsed form of the meeting's address; opaque, and cleared some days after the meeting.
    :param recording_config: what was asked for, with defaults filled in; ``None`` where the API doesn't tell.
    """

    id: str
    meeting_url: object
    status_changes: tuple[StatusChange, ...]
    recordings: tuple[Recording, ...]
    metadata: Mapping[str, str | None]
    recording_config: Mapping[str, object] | None

    @property
    def status(self) -> StatusChange | None:
        """The latest status by its own time, since the list's order means nothing; ``None`` before the first."""
        latest: StatusChange | None = None
        for change in self.status_changes:
            if change.code != "ready" and (latest is None or change.created_at >= latest.created_at):
                latest = change
        return latest

    @property
    def is_finished(self) -> bool:
        """The bot has left for good and records nothing further.

        Once finished it stays so, whatever unknown code may follow.
        """
        return any(change.code in BOT_FINISHED for change in self.status_changes)

    @property
    def audio_forms(self) -> int | None:
        """In how many forms separate audio was asked for, 0 to 2; ``None`` if the API doesn't tell.

        Each recording gets one artifact per form.
        """
        if self.recording_config is None:
            return None
        return sum(self.recording_config.get(f"audio_separate_{form}") is not None for form in ("raw", "mp3"))

    @property
    def platform(self) -> str | None:
        """The platform of its meeting, while the API still tells."""
        if isinstance(self.meeting_url, str):
            return platform_of(self.meeting_url)
        return _optional_text(_dig(self.meeting_url, "platform"))

    @classmethod
    def parse(cls, data: object, path: str = "") -> Bot:
        """Read a bot.

        :raises RecallSchemaError: it has no id, or no list of status changes or recordings.
        """
        fields = _object(data, path)
        bot = cls(
            id=_text(fields, "id", path),
            meeting_url=fields.get("meeting_url"),
            status_changes=tuple(
                StatusChange.parse(one, where) for one, where in _entries(fields, "status_changes", path)
            ),
            recordings=(),
            metadata=_metadata(fields),
            recording_config=config if isinstance(config := fields.get("recording_config"), dict) else None,
        )
        recordings = tuple(Recording.parse(one, where).of(bot) for one, where in _entries(fields, "recordings", path))
        return cls(**{**bot.__dict__, "recordings": recordings})


@dataclass(frozen=True)
class AudioArtifact:
    """The separate audio of one recording in one format.

    :param format: Recall's word for it (``raw``, ``ogg``, …), which needn't be what the bytes are.
    :param download_url: link to the parts list; ``None`` until it is done, and after deletion.
    """

    id: str
    recording_id: str
    created_at: datetime
    status: str
    sub_code: str | None
    metadata: Mapping[str, str | None]
    format: str | None
    download_url: SignedLink | None

    @classmethod
    def parse(cls, data: object, path: str = "") -> AudioArtifact:
        """Read an artifact.

        :raises RecallSchemaError: an id, the status or ``created_at`` is missing, or it is done and has no field for
            its link.
        """
        fields = _object(data, path)
        status, sub_code = _status(fields, path)
        media = fields.get("data")
        if status == "done":
            media = _object(media, _join(path, "data"))
            if "download_url" not in media:
                _fail(_join(path, "data.download_url"), "a link or null", None)
        link = media.get("download_url") if isinstance(media, dict) else None
        return cls(
            id=_text(fields, "id", path),
            recording_id=_text(
                _object(fields.get("recording"), _join(path, "recording")), "id", _join(path, "recording")
            ),
            created_at=_time(fields, "created_at", path),
            status=status,
            sub_code=sub_code,
            metadata=_metadata(fields),
            format=_optional_text(fields.get("format")),
            download_url=None if link is None else _link(link, _join(path, "data.download_url")),
        )


@dataclass(frozen=True)
class Participant:
    """Someone in one recording. Neither the id nor the name is unique beyond it.

    :param id: ``-1`` where Recall doesn't say who it was.
    """

    id: int
    name: str | None
    is_host: bool | None
    platform: str | None
    email: str | None
    extra_data: object

    @classmethod
    def parse(cls, data: object, path: str = "") -> Participant:
        """Read a participant; null, or one without id, is the unknown participant.

        :raises RecallSchemaError: it is no object, or its id no number.
        """
        fields: Mapping[str, object] = {} if data is None else _object(data, path)
        number = fields.get("id")
        if number is None:
            return cls(UNKNOWN_PARTICIPANT, None, None, None, None, None)
        if isinstance(number, str) and re.fullmatch(r"-?[0-9]{1,18}", number):
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int):
            _fail(_join(path, "id"), "an integer", number)
        is_host = fields.get("is_host")
        return cls(
            id=number,
            name=_optional_text(fields.get("name")),
            is_host=is_host if isinstance(is_host, bool) else None,
            platform=_optional_text(fields.get("platform")),
            email=_optional_text(fields.get("email")),
            extra_data=fields.get("extra_data"),
        )


@dataclass(frozen=True)
class AudioPart:
    """One stretch of one participant's audio.

    :param start_relative: seconds from the recording's start; may be negative.
    :param duration: seconds.
    """

    id: str
    participant: Participant
    start_relative: float
    start_absolute: datetime | None
    duration: float
    download_url: SignedLink

    @classmethod
    def parse(cls, data: object, path: str = "") -> AudioPart:
        """Read one entry of a parts list.

        :raises RecallSchemaError: its id, timing or link is missing.
        """
        fields = _object(data, path)
        start = _object(fields.get("start_timestamp"), _join(path, "start_timestamp"))
        number = fields.get("id")
        if isinstance(number, int) and not isinstance(number, bool):
            fields = {**fields, "id": str(number)}
        duration = _number(fields, "duration", path)
        if duration < 0:
            _fail(_join(path, "duration"), "a number of seconds", duration)
        return cls(
            id=_text(fields, "id", path),
            participant=Participant.parse(fields.get("participant"), _join(path, "participant")),
            start_relative=_number(start, "relative", _join(path, "start_timestamp")),
            start_absolute=_optional_time(start.get("absolute")),
            duration=duration,
            download_url=_link(fields.get("download_url"), _join(path, "download_url")),
        )


def parse_page(data: object) -> tuple[list[tuple[object, str]], str | None]:
    """Read one page of a list: its entries, each with its path, and the link to the next page.

    :raises RecallSchemaError: ``results`` is no list, or ``next`` neither a link nor null.
    """
    fields = _object(data, "")
    following = fields.get("next")
    if following is not None and not isinstance(following, str):
        _fail("next", "a link or null", following)
    return list(_entries(fields, "results", "")), following or None


def parse_time(text: str) -> datetime | None:
    """Read an ISO 8601 time as UTC, with ``Z`` or an offset and any number of decimals; ``None`` if it is not one.

    ``datetime.fromisoformat`` can't read these before Python 3.11.
    """
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    offset = "+00:00" if zone in (None, "Z", "z") else f"{zone[:3]}:{zone[-2:]}"
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '')[:6]:0<6}{offset}")
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def _fail(path: str, expected: str, found: object) -> NoReturn:
    kind = "null or missing" if found is None else type(found).__name__
    where = path or "(top level)"
    raise RecallSchemaError(
        f"field {where} of Recall's reply should be {expected} and is {kind}; the API's schema has changed", field=path
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _object(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _fail(path, "an object", value)
    return value


def _entries(fields: Mapping[str, object], name: str, path: str) -> list[tuple[object, str]]:
    value = fields.get(name)
    if not isinstance(value, list):
        _fail(_join(path, name), "a list", value)
    return [(entry, f"{_join(path, name)}[{index}]") for index, entry in enumerate(value)]


def _text(fields: Mapping[str, object], name: str, path: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        _fail(_join(path, name), "a non-empty string", value)
    return value


def _optional_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(fields: Mapping[str, object], name: str, path: str) -> float:
    value = fields.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    _fail(_join(path, name), "a number", value)


def _time(fields: Mapping[str, object], name: str, path: str) -> datetime:
    moment = _optional_time(fields.get(name))
    if moment is None:
        _fail(_join(path, name), "an ISO 8601 time", fields.get(name))
    return moment


def _optional_time(value: object) -> datetime | None:
    return parse_time(value) if isinstance(value, str) else None


def _status(fields: Mapping[str, object], path: str) -> tuple[str, str | None]:
    if "status" in fields and fields["status"] is None:
        return "unknown", None
    status = _object(fields.get("status"), _join(path, "status"))
    return _text(status, "code", _join(path, "status")), _optional_text(status.get("sub_code"))


def _metadata(fields: Mapping[str, object]) -> dict[str, str | None]:
    value = fields.get("metadata")
    if not isinstance(value, dict):
        return {}
    return {name: one if one is None or isinstance(one, str) else json.dumps(one) for name, one in value.items()}


def _link(value: object, path: str) -> SignedLink:
    if not isinstance(value, str) or not value:
        _fail(path, "a link", value)
    return SignedLink(value)


def _dig(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
