"""The API origin: bots, recordings, separate audio and downloads as Recall serves them, and the control API."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import uuid
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from include.simulator import scenario, views
from include.simulator.faults import FIREWALL_PAGE, FaultBook, Rule
from include.simulator.gateway import Gateway
from include.simulator.limits import RateLimiter
from include.simulator.links import LinkRefusedError, Origins
from include.simulator.validation import INSIDE_ADDRESS, check_create, check_metadata, check_update
from include.simulator.world import (
    STATUS_MEDIA_EXPIRED,
    ArtifactState,
    BotState,
    RecordingState,
    World,
    format_time,
    parse_time,
    platform_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from include.simulator.journal import Journal

DISPATCHED = {"code": "update_bot_failed", "detail": "Only non-dispatched bots can be updated"}
STATUS_CODES = {
    "recording": ("processing", "paused", "done", "failed"),
    "audio_separate": ("processing", "done", "failed"),
}


class ApiError(Exception):
    """An answer other than success.

    :param body: JSON, or the text of an HTML page.
    """

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers


class Api:
    """The routes under ``/api/v1``.

    :param world: the state that they show and change.
    :param media_port: where the media origin listens, on the host name that the client uses for the API.
    """

    def __init__(self, world: World, media_port: int) -> None:
        self._world = world
        self._media_port = media_port
        self.limiter = RateLimiter()
        self.router = APIRouter(prefix="/api/v1", dependencies=[Depends(firewall)], include_in_schema=False)
        listed, single, created = ([Depends(self._guard(kind))] for kind in ("list", "retrieve", "create"))
        add = self.router.add_api_route
        add("/bot/", self.create_bot, methods=["POST"], dependencies=created)
        add("/bot/", self.list_bots, methods=["GET"], dependencies=listed)
        add("/bot/{bot_id}/", self.get_bot, methods=["GET"], dependencies=single)
        add("/bot/{bot_id}/", self.update_bot, methods=["PATCH"], dependencies=single)
        add("/bot/{bot_id}/", self.cancel_bot, methods=["DELETE"], dependencies=single)
        add("/bot/{bot_id}/delete_media/", self.delete_bot_media, methods=["POST"], dependencies=single)
        add("/bot/{bot_id}/leave_call/", self.leave_call, methods=["POST"], dependencies=single)
        add("/recording/", self.list_recordings, methods=["GET"], dependencies=listed)
        add("/recording/{recording_id}/", self.get_recording, methods=["GET"], dependencies=single)
        add("/recording/{recording_id}/", self.update_recording, methods=["PATCH"], dependencies=single)
        add("/recording/{recording_id}/", self.delete_recording, methods=["DELETE"], dependencies=single)
        add("/audio_separate/", self.list_artifacts, methods=["GET"], dependencies=listed)
        add("/audio_separate/{artifact_id}/", self.get_artifact, methods=["GET"], dependencies=single)
        add("/audio_separate/{artifact_id}/", self.update_artifact, methods=["PATCH"], dependencies=single)
        add("/audio_separate/{artifact_id}/", self.delete_artifact, methods=["DELETE"], dependencies=single)
        add("/download/{kind}/", self.download, methods=["GET"])

    def _guard(self, kind: str) -> Callable[[Request], None]:
        def guard(request: Request) -> None:
            key = request.headers.get("authorization", "").removeprefix("Token ").strip()
            settings = self._world.settings
            if key != settings.api_key:
                raise ApiError(401, {"detail": "Invalid token."})
            wait = self.limiter.refuse(kind, strict=settings.strict_rate) if settings.rate_limit else None
            if wait is not None:
                detail = f"Request was throttled. Expected available in {wait} seconds."
                raise ApiError(429, {"detail": detail}, {"Retry-After": str(wait)})

        return guard

    # Bots

    async def create_bot(self, request: Request) -> Response:
        """``POST /api/v1/bot/``."""
        fields, errors = check_create(await read_body(request))
        if errors:
            raise ApiError(400, errors)
        return JSONResponse(views.bot_json(self._world.create_bot(fields), self._world, self._origins(request)), 201)

    async def list_bots(self, request: Request) -> Response:
        """``GET /api/v1/bot/``, in pages by number, newest first."""
        now = self._world.now()
        query = request.query_params
        bots = sorted(self._world.bots.values(), key=lambda bot: (bot.start, bot.id), reverse=True)
        platforms, statuses = query.getlist("platform"), query.getlist("status")
        after, before = read_moment(request, "join_at_after"), read_moment(request, "join_at_before")
        metadata = {key[len("metadata__") :]: value for key, value in query.items() if key.startswith("metadata__")}
        found = []
        for bot in bots:
            changes = bot.status_changes(now)
            code = max(changes, key=lambda change: change[1])[0].code if changes else "ready"
            known = bot.request["metadata"]
            joins = parse_time(bot.request["join_at"]) if bot.request["join_at"] else bot.start
            if (
                (not platforms or platform_of(bot.request["meeting_url"]) in platforms)
                and (not statuses or code in statuses)
                and query.get("meeting_url", bot.request["meeting_url"]) == bot.request["meeting_url"]
                and all(known.get(key) == value for key, value in metadata.items())
                and (after is None or joins >= after)
                and (before is None or joins <= before)
            ):
                found.append(bot)
        size = self._world.settings.page_size
        text = query.get("page", "1")
        page = int(text) if text.isdigit() else 0
        if not 1 <= page <= max(1, math.ceil(len(found) / size)):
            raise ApiError(404, {"detail": "Invalid page."})
        origins = self._origins(request)
        shown = found[(page - 1) * size : page * size]
        body = {
            "count": len(found),
            "next": self._page_url(request, page + 1) if page * size < len(found) else None,
            "previous": self._page_url(request, page - 1) if page > 1 else None,
            "results": [views.bot_json(bot, self._world, origins) for bot in shown],
        }
        return JSONResponse(body)

    async def get_bot(self, request: Request, bot_id: str) -> Response:
        """``GET /api/v1/bot/{id}/``."""
        return self._show_bot(request, self._bot(bot_id))

    async def update_bot(self, request: Request, bot_id: str) -> Response:
        """``PATCH /api/v1/bot/{id}/``: only while it is scheduled."""
        bot = self._bot(bot_id)
        if bot.dispatched(self._world.now()):
            raise ApiError(400, DISPATCHED)
        body = await read_body(request)
        fields, errors = check_update(body, bot.request)
        if errors:
            raise ApiError(400, errors)
        self._world.update_bot(bot, fields)
        return self._show_bot(request, bot)

    async def cancel_bot(self, bot_id: str) -> Response:
        """``DELETE /api/v1/bot/{id}/``: only while it is scheduled."""
        bot = self._bot(bot_id)
        if bot.dispatched(self._world.now()):
            raise ApiError(405, {"detail": 'Method "DELETE" not allowed.'})
        self._world.cancel(bot)
        return Response(status_code=204)

    async def delete_bot_media(self, request: Request, bot_id: str) -> Response:
        """``POST /api/v1/bot/{id}/delete_media/``."""
        bot = self._bot(bot_id)
        now = self._world.now()
        for recording in bot.recordings:
            recording.deleted_at = recording.deleted_at or now
        return self._show_bot(request, bot)

    async def leave_call(self, request: Request, bot_id: str) -> Response:
        """``POST /api/v1/bot/{id}/leave_call/``."""
        bot = self._bot(bot_id)
        codes = {step.code for step, _ in bot.status_changes(self._world.now())}
        if codes & {"call_ended", "done", "fatal", STATUS_MEDIA_EXPIRED}:
            raise ApiError(400, {"code": "cannot_command_completed_bot", "detail": "Cannot command a completed bot"})
        if not codes:
            raise ApiError(400, {"code": "cannot_command_unstarted_bot", "detail": "Cannot command an unstarted bot"})
        self._world.leave(bot)
        return self._show_bot(request, bot)

    # Recordings

    async def list_recordings(self, request: Request) -> Response:
        """``GET /api/v1/recording/``, in pages by cursor, newest first."""
        bot_id, status = read_uuid(request, "bot_id"), read_choice(request, "recording")
        read_uuid(request, "desktop_sdk_upload_id")
        now = self._world.now()
        found = [
            recording
            for recording in self._world.recordings.values()
            if self._world.visible_recording(recording.id)
            and bot_id in (None, recording.bot.id)
            and status in (None, recording.status(now)[0])
            and "desktop_sdk_upload_id" not in request.query_params
        ]
        origins = self._origins(request)
        return self._page(request, found, lambda one: views.recording_json(one, self._world, origins))

    async def get_recording(self, request: Request, recording_id: str) -> Response:
        """``GET /api/v1/recording/{id}/``."""
        recording = self._recording(recording_id)
        return JSONResponse(views.recording_json(recording, self._world, self._origins(request)))

    async def update_recording(self, request: Request, recording_id: str) -> Response:
        """``PATCH /api/v1/recording/{id}/``: its metadata."""
        recording = self._recording(recording_id)
        recording.metadata = await read_metadata(request, recording.metadata)
        return JSONResponse(views.recording_json(recording, self._world, self._origins(request)))

    async def delete_recording(self, recording_id: str) -> Response:
        """``DELETE /api/v1/recording/{id}/``: with all its artifacts, for good."""
        self._delete(self._recording(recording_id))
        return Response(status_code=204)

    # Separate audio

    async def list_artifacts(self, request: Request) -> Response:
        """``GET /api/v1/audio_separate/``, in pages by cursor, newest first."""
        recording_id, status = read_uuid(request, "recording_id"), read_choice(request, "audio_separate")
        now = self._world.now()
        found = [
            artifact
            for artifact in self._world.artifacts.values()
            if self._world.visible_artifact(artifact.id)
            and recording_id in (None, artifact.recording.id)
            and status in (None, artifact.status(now)[0])
        ]
        origins = self._origins(request)
        return self._page(request, found, lambda one: views.artifact_json(one, self._world, origins))

    async def get_artifact(self, request: Request, artifact_id: str) -> Response:
        """``GET /api/v1/audio_separate/{id}/``."""
        artifact = self._artifact(artifact_id)
        return JSONResponse(views.artifact_json(artifact, self._world, self._origins(request)))

    async def update_artifact(self, request: Request, artifact_id: str) -> Response:
        """``PATCH /api/v1/audio_separate/{id}/``: its metadata."""
        artifact = self._artifact(artifact_id)
        artifact.metadata = await read_metadata(request, artifact.metadata)
        return JSONResponse(views.artifact_json(artifact, self._world, self._origins(request)))

    async def delete_artifact(self, artifact_id: str) -> Response:
        """``DELETE /api/v1/audio_separate/{id}/``: for good."""
        self._delete(self._artifact(artifact_id))
        return Response(status_code=204)

    # Downloads

    async def download(self, request: Request, kind: str) -> Response:
        """``GET /api/v1/download/{kind}?token=…``: needs no key."""
        world = self._world
        try:
            if getattr(request.state, "expired", False):
                raise LinkRefusedError("expired")
            target = world.signer.open_token(request.query_params.get("token", ""), kind, world.now())
        except LinkRefusedError as refused:
            detail = "Token has expired." if refused.reason == "expired" else "Invalid token."
            raise ApiError(403, {"detail": detail}) from None
        if kind == "audio_separate":
            artifact = world.artifacts.get(target)
            if artifact is None or artifact.status(world.now())[0] == "deleted":
                raise not_found()
            text = views.parts_text(artifact, world, self._origins(request))
            return StreamingResponse(breathing(text), media_type="application/json")
        recording = world.recordings.get(target)
        if recording is None or recording.status(world.now())[0] == "deleted":
            raise not_found()
        show: dict[str, Callable[[RecordingState], list[Any]]] = {
            "participants": views.participants_json,
            "participant_events": views.participant_events_json,
            "speaker_timeline": views.speaker_timeline_json,
        }
        return JSONResponse(show[kind](recording))

    # Shared

    def _origins(self, request: Request) -> Origins:
        api = f"http://{request.headers.get('host', '')}"
        return Origins(api, f"http://{request.url.hostname}:{self._media_port}")

    def _bot(self, bot_id: str) -> BotState:
        bot = self._world.bots.get(bot_id)
        if bot is None:
            raise not_found()
        return bot

    def _recording(self, recording_id: str) -> RecordingState:
        recording = self._world.visible_recording(recording_id)
        if recording is None:
            raise not_found()
        return recording

    def _artifact(self, artifact_id: str) -> ArtifactState:
        artifact = self._world.visible_artifact(artifact_id)
        if artifact is None:
            raise not_found()
        return artifact

    def _show_bot(self, request: Request, bot: BotState) -> Response:
        return JSONResponse(views.bot_json(bot, self._world, self._origins(request)))

    def _delete(self, target: RecordingState | ArtifactState) -> None:
        now = self._world.now()
        code = target.status(now)[0]
        if code == "deleted":
            raise not_found()
        if code == "processing":
            raise ApiError(409, {"code": "conflict", "detail": "Cannot delete media while it is processing."})
        target.deleted_at = now

    def _page_url(self, request: Request, page: int) -> str:
        query = [(key, value) for key, value in request.query_params.multi_items() if key != "page"]
        if page > 1:
            query.append(("page", str(page)))
        return self._origins(request).api + request.url.path + (f"?{urlencode(query)}" if query else "")

    def _page(self, request: Request, found: list[Any], show: Callable[[Any], dict[str, Any]]) -> Response:
        after, before = read_moment(request, "created_at_after"), read_moment(request, "created_at_before")
        chosen = [
            one
            for one in found
            if (after is None or one.created_at >= after) and (before is None or one.created_at <= before)
        ]
        chosen.sort(key=place_of, reverse=True)
        query = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
        base = self._origins(request).api + request.url.path
        cursor = request.query_params.get("cursor")
        size = self._world.settings.page_size
        first = 0
        if cursor is not None:
            limit = read_cursor(cursor)
            first = next((index for index, one in enumerate(chosen) if place_of(one) < limit), len(chosen))
        shown = chosen[first : first + size]
        after_link = before_link = None
        if first + size < len(chosen):
            after_link = f"{base}?{urlencode([*query, ('cursor', write_cursor(place_of(shown[-1])))])}"
        if first > size:
            before_link = f"{base}?{urlencode([*query, ('cursor', write_cursor(place_of(chosen[first - size - 1])))])}"
        elif first:
            before_link = base + (f"?{urlencode(query)}" if query else "")
        return JSONResponse({"next": after_link, "previous": before_link, "results": [show(one) for one in shown]})


async def firewall(request: Request) -> None:
    """Refuse what Recall's web firewall refuses, with its HTML page."""
    body = await request.body()
    if request.method == "GET" and (body or "content-type" in request.headers):
        raise ApiError(403, FIREWALL_PAGE)
    if INSIDE_ADDRESS.search(body):
        raise ApiError(403, FIREWALL_PAGE)


async def read_body(request: Request) -> dict[str, Any]:
    """Read the body of a request, as JSON or as a form."""
    raw = await request.body()
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind == "application/x-www-form-urlencoded":
        return dict(parse_qsl(raw.decode(), keep_blank_values=True))
    if kind != "application/json":
        raise ApiError(415, {"detail": f'Unsupported media type "{kind}" in request.'})
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ApiError(400, {"detail": f"JSON parse error - {error}"}) from None
    if not isinstance(body, dict):
        message = f"Invalid data. Expected a dictionary, but got {type(body).__name__}."
        raise ApiError(400, {"non_field_errors": [message]})
    return body


async def read_metadata(request: Request, current: scenario.Metadata | None) -> scenario.Metadata | None:
    """Read the body of a PATCH that changes metadata only."""
    body = await read_body(request)
    wrong = check_metadata(body.get("metadata"))
    if wrong is not None:
        raise ApiError(400, {"metadata": wrong})
    metadata: scenario.Metadata | None = body.get("metadata", current)
    return metadata


def read_uuid(request: Request, name: str) -> str | None:
    """Read a UUID from the query."""
    text = request.query_params.get(name)
    try:
        return None if text is None else str(uuid.UUID(text))
    except ValueError:
        raise ApiError(400, {name: ["Enter a valid UUID."]}) from None


def read_choice(request: Request, kind: str) -> str | None:
    """Read ``status_code`` from the query."""
    text = request.query_params.get("status_code")
    if text is not None and text not in STATUS_CODES[kind]:
        message = f"Select a valid choice. {text} is not one of the available choices."
        raise ApiError(400, {"status_code": [message]})
    return text


def read_moment(request: Request, name: str) -> datetime | None:
    """Read a timestamp from the query."""
    text = request.query_params.get(name)
    try:
        return None if text is None else parse_time(text)
    except ValueError:
        raise ApiError(400, {name: ["Enter a valid date/time."]}) from None


def place_of(one: RecordingState | ArtifactState) -> tuple[datetime, str]:
    """Give the place of an entry in a list."""
    return one.created_at, one.id


def write_cursor(place: tuple[datetime, str]) -> str:
    """Write a cursor; it always holds characters that a URL must encode."""
    text = f"{place[0].isoformat()}|{place[1]}"
    return base64.b64encode(text.encode() + b" " * (1 - len(text) % 3 if len(text) % 3 < 2 else 2)).decode()


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """Read a cursor."""
    try:
        moment, _, identity = base64.b64decode(cursor, validate=True).decode().strip().partition("|")
        return datetime.fromisoformat(moment), identity
    except ValueError:
        raise ApiError(404, {"detail": "Invalid cursor"}) from None


def not_found() -> ApiError:
    """Give the answer for an id that is not there."""
    return ApiError(404, {"detail": "Not found."})


async def breathing(pieces: Any) -> AsyncIterator[str]:
    """Let other requests in between the pieces of a long answer."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


class SettingsChange(BaseModel):
    """Settings to change while running; see :class:`include.simulator.world.Settings`."""

    model_config = ConfigDict(extra="forbid")

    speed: float | None = Field(default=None, gt=0)
    link_seconds: float | None = None
    page_size: int | None = Field(default=None, ge=1)
    deleted: Literal["listed", "gone"] | None = None
    rate_limit: bool | None = None
    strict_rate: bool | None = None


class Advance(BaseModel):
    """A jump of the virtual clock."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(ge=0)


class Control:
    """The routes under ``/_sim``.

    :param world: the state to make, move and show.
    :param journal: the requests so far.
    :param faults: the rules in force.
    :param limiter: emptied by a reset.
    """

    def __init__(self, world: World, journal: Journal, faults: FaultBook) -> None:
        self._world = world
        self._journal = journal
        self._faults = faults
        self._initial = asdict(world.settings)
        self.forget: list[Callable[[], None]] = []
        self.router = APIRouter(prefix="/_sim")
        add = self.router.add_api_route
        add("/health", self.health, methods=["GET"])
        add("/reset", self.reset, methods=["POST"])
        add("/settings", self.settings, methods=["POST"])
        add("/meetings", self.add_meeting, methods=["POST"])
        add("/advance", self.advance, methods=["POST"])
        add("/state", self.state, methods=["GET"])
        add("/journal", self.journal, methods=["GET"])
        add("/journal", self.clear_journal, methods=["DELETE"])
        add("/truth/{recording_id}", self.truth, methods=["GET"])
        add("/faults", self.add_faults, methods=["POST"])
        add("/faults", self.list_faults, methods=["GET"])
        add("/faults", self.clear_faults, methods=["DELETE"])

    async def health(self) -> dict[str, Any]:
        """Tell that the simulator is up, and what time it thinks it is."""
        return {"status": "ok", "now": format_time(self._world.now())}

    async def reset(self) -> dict[str, Any]:
        """Forget meetings, rules, journal, rate windows and idempotency keys; settings as at the start."""
        self._world.settings.__dict__.update(self._initial)
        self._world.reset()
        self._journal.clear()
        self._faults.clear()
        for forget in self.forget:
            forget()
        return await self.health()

    async def settings(self, change: SettingsChange) -> dict[str, Any]:
        """Change settings while running."""
        self._world.settings.__dict__.update(change.model_dump(exclude_none=True))
        if change.speed is not None:
            self._world.clock.set_speed(change.speed)
        return {key: value for key, value in asdict(self._world.settings).items() if key != "api_key"}

    async def add_meeting(self, meeting: scenario.Meeting) -> dict[str, Any]:
        """Make a meeting of any shape, and tell all its ids."""
        body = meeting.model_dump(mode="json", include={"meeting_url", "bot_name", "metadata", "join_at"})
        body["recording_config"] = meeting.recording_config
        request, errors = check_create(body)
        if errors:
            raise HTTPException(422, errors)
        try:
            bot = self._world.add_meeting(meeting, request)
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        if bot is None:
            return {"meeting_url": meeting.meeting_url, "dispatch": meeting.dispatch}
        return ids_of(bot)

    async def advance(self, jump: Advance) -> dict[str, Any]:
        """Move the virtual clock on."""
        self._world.clock.jump(jump.seconds)
        return await self.health()

    async def state(self) -> dict[str, Any]:
        """Show where everything stands."""
        now = self._world.now()
        return {
            "now": format_time(now),
            "bots": [views.bot_truth(bot, now) for bot in self._world.bots.values()],
            "waiting": sorted(self._world.waiting),
        }

    async def journal(self, origin: str | None = None, since: int = 0) -> dict[str, Any]:
        """Show the requests so far.

        :param origin: only those to ``api`` or ``media``.
        :param since: only those with a higher number.
        """
        entries = [
            entry.to_json()
            for entry in self._journal.entries
            if entry.number > since and origin in (None, entry.origin)
        ]
        return {"count": len(entries), "entries": entries}

    async def clear_journal(self) -> Response:
        """Forget the requests so far."""
        self._journal.clear()
        return Response(status_code=204)

    async def truth(self, recording_id: str) -> dict[str, Any]:
        """Tell length and SHA-256 of every body of a recording."""
        recording = self._world.recordings.get(recording_id)
        if recording is None:
            raise HTTPException(404, "no such recording")
        return await asyncio.to_thread(truth_of, recording)

    async def add_faults(self, rules: list[Rule]) -> dict[str, Any]:
        """Put rules in force, behind those that are."""
        self._faults.add(rules)
        return await self.list_faults()

    async def list_faults(self) -> dict[str, Any]:
        """Show the rules in force and how often each was applied."""
        return {"rules": [rule.to_json() for rule in self._faults.rules]}

    async def clear_faults(self) -> Response:
        """Drop all rules and let go what they have stalled."""
        self._faults.clear()
        return Response(status_code=204)


IDS_SHOWN = 2000


def ids_of(bot: BotState) -> dict[str, Any]:
    """List the ids of a bot and of everything under it; of the parts, the first 2,000."""
    return {
        "bot_id": bot.id,
        "recordings": [
            {
                "id": recording.id,
                "artifacts": [
                    {
                        "id": artifact.id,
                        "format": artifact.spec.format,
                        "parts_count": sum(part.repeat for part in artifact.spec.parts),
                        "parts": [part.id for _, part in zip(range(IDS_SHOWN), artifact.parts(), strict=False)],
                    }
                    for artifact in recording.artifacts
                ],
            }
            for recording in bot.recordings
        ],
    }


def truth_of(recording: RecordingState) -> dict[str, Any]:
    """Compute length and SHA-256 of every body of a recording."""
    return {
        "recording_id": recording.id,
        "bot_id": recording.bot.id,
        "created_at": format_time(recording.created_at),
        "artifacts": [
            {
                "id": artifact.id,
                "format": artifact.spec.format,
                "parts": [
                    {
                        "id": part.id,
                        "participant_id": None if part.spec.participant is None else part.spec.participant.id,
                        "relative": part.relative,
                        "duration": part.duration,
                        "length": part.body.length,
                        "sha256": scenario.digest_of(part.audio, "sha256").hex(),
                    }
                    for part in artifact.parts()
                ],
            }
            for artifact in recording.artifacts
        ],
    }


def create_app(world: World, journal: Journal, faults: FaultBook, *, media_port: int) -> Gateway:
    """Put the API origin together.

    :param world: the state.
    :param journal: where requests are noted.
    :param faults: the rules in force.
    :param media_port: where the media origin listens.
    """
    app = FastAPI(
        title="Recall.ai simulator",
        docs_url="/_sim/docs",
        openapi_url="/_sim/openapi.json",
        redoc_url=None,
        redirect_slashes=False,
    )
    api = Api(world, media_port)
    control = Control(world, journal, faults)
    app.include_router(api.router)
    app.include_router(control.router)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        if isinstance(error.body, str):
            return HTMLResponse(error.body, error.status)
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(StarletteHTTPException)
    async def unknown(request: Request, error: StarletteHTTPException) -> Response:
        detail = error.detail
        if error.status_code == 404 and request.url.path.startswith("/api/"):
            detail = "Not found."
        elif error.status_code == 405:
            detail = f'Method "{request.method}" not allowed.'
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    gateway = Gateway(app, world, journal, faults)
    control.forget += [gateway.forget, api.limiter.forget]
    return gateway
