"""The API origin: bots, recordings, separate audio and downloads as Recall serves them."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from include.simulator import scenario, views
from include.simulator.faults import FIREWALL_PAGE
from include.simulator.limits import RateLimiter
from include.simulator.links import LinkRefusedError, Origins
from include.simulator.validation import INSIDE_ADDRESS, check_create, check_metadata, check_update
from include.simulator.world import (
    STATUS_MEDIA_EXPIRED,
    ArtifactState,
    BotState,
    RecordingState,
    World,
    parse_time,
    platform_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator

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
        bot_id, status = read_uuid(request, "bot_id", self._world.bots), read_choice(request, "recording")
        read_uuid(request, "desktop_sdk_upload_id", ())
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
        recording_id, status = (
            read_uuid(request, "recording_id", self._world.recordings),
            read_choice(request, "audio_separate"),
        )
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
        # Escaped, as the list of parts is: a name may hold half a surrogate pair, which no UTF-8 can carry.
        return Response(json.dumps(show[kind](recording)), media_type="application/json")

    # Shared

    def _origins(self, request: Request) -> Origins:
        host = request.headers.get("host", "")
        name = re.sub(r":\d+$", "", host)
        return Origins(f"http://{host}", f"http://{name}:{self._media_port}")

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


def read_uuid(request: Request, name: str, known: Collection[str]) -> str | None:
    """Read a UUID from the query, or whatever else a scenario has chosen for an id."""
    text = request.query_params.get(name)
    try:
        return text if text is None or text in known else str(uuid.UUID(text))
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


async def breathing(pieces: Iterator[str]) -> AsyncIterator[str]:
    """Let other requests in between the pieces of a long answer."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)
