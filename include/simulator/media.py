"""The media origin: a small HTTP server of its own, because frameworks refuse to send what must be tested."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import secrets
import socket
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from include.simulator import audio, scenario
from include.simulator.links import LinkRefusedError
from include.simulator.wire import PLAIN, HangUpError, Reply, SocketWire, deliver, linger_zero

if TYPE_CHECKING:
    from include.simulator.faults import Action, ArmedRule, FaultBook
    from include.simulator.journal import Entry, Journal
    from include.simulator.world import ArtifactState, PartState, World

HEAD_LIMIT = 64 * 1024
SINGLE_PUT = 8 * 1024 * 1024
_TWO_MECHANISMS = (
    "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or "
    "the Authorization header should be specified"
)


@dataclass(frozen=True)
class MediaRequest:
    """The head of a request."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    close: bool
    body_bytes: int


class MediaServer:
    """Serves the bodies of parts under signed links.

    :param world: where the parts are.
    :param journal: where requests are noted.
    :param faults: the rules in force.
    """

    def __init__(self, world: World, journal: Journal, faults: FaultBook) -> None:
        self._world = world
        self._journal = journal
        self._faults = faults
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections until cancelled, then drop those that are open.

        :param listener: a listening socket.
        """
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            while True:
                connection, _ = await loop.sock_accept(listener)
                connection.setblocking(False)
                task = asyncio.create_task(self._talk(connection))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
        finally:
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _talk(self, connection: socket.socket) -> None:
        wire = SocketWire(connection)
        with connection, contextlib.suppress(HangUpError, ConnectionError, ValueError):
            buffered = bytearray()
            while (request := await _read_request(connection, buffered)) is not None:
                await self._serve_one(wire, request)
                if request.close:
                    connection.shutdown(socket.SHUT_WR)
                    return

    async def _serve_one(self, wire: SocketWire, request: MediaRequest) -> None:
        target = (request.path, request.query)
        entry = self._journal.open("media", request.method, target, request.headers.items())
        entry.body_bytes = request.body_bytes
        place = f"{request.path}?{entry.query}" if entry.query else request.path
        rule = self._faults.find("media", request.method, place)
        try:
            if rule is None:
                reply = await self._answer(request, None)
                await self._send(wire, request, reply, entry)
            else:
                entry.fault = rule.name
                await self._misbehave(wire, request, rule, entry)
        finally:
            entry.finish()

    async def _misbehave(self, wire: SocketWire, request: MediaRequest, rule: ArmedRule, entry: Entry) -> None:
        action = rule.action
        if action.delay:
            await asyncio.sleep(action.delay)
        if action.drop is not None:
            linger_zero(wire.connection)
            raise HangUpError
        reply = action.instead(request.path, request.query)
        if reply is None:
            reply = await self._answer(request, action)
        reply = action.change(reply, request.path, self._world.now())
        await self._send(wire, request, reply, entry, rule)

    async def _send(
        self, wire: SocketWire, request: MediaRequest, reply: Reply, entry: Entry, rule: ArmedRule | None = None
    ) -> None:
        if request.method == "HEAD":
            reply.stop, reply.length = reply.start, 0
        how = PLAIN if rule is None else rule.action.delivery(reply, rule.released)
        await deliver(wire, reply, entry, now=self._world.now(), close=request.close, how=how)

    async def _answer(self, request: MediaRequest, action: Action | None) -> Reply:
        now = self._world.now()
        if "authorization" in request.headers:
            return _error(400, "InvalidArgument", _TWO_MECHANISMS, ArgumentName="Authorization")
        try:
            if action is not None and action.expired:
                raise LinkRefusedError("expired", int(now.timestamp()) - 1)
            query = dict(parse_qsl(request.query, keep_blank_values=True))
            self._world.signer.check_media(request.method, request.path, query, now)
        except LinkRefusedError as refused:
            return _refusal(refused, now)
        found = self._world.media_object(request.path)
        if found is None:
            return _error(404, "NoSuchKey", "The specified key does not exist.", Key=request.path.lstrip("/"))
        return await _object(request, *found, action)


async def _read_request(connection: socket.socket, buffered: bytearray) -> MediaRequest | None:
    """Read one head, and throw its body away. ``buffered`` keeps what came after it."""
    loop = asyncio.get_running_loop()
    while (end := buffered.find(b"\r\n\r\n")) < 0:
        data = await loop.sock_recv(connection, HEAD_LIMIT)
        if not data or len(buffered) > HEAD_LIMIT:
            return None
        buffered += data
    lines = buffered[:end].decode("latin-1").split("\r\n")
    del buffered[: end + 4]
    method, target, version = lines[0].split(" ")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    while len(buffered) < length:
        data = await loop.sock_recv(connection, HEAD_LIMIT)
        if not data:
            return None
        buffered += data
    del buffered[:length]
    path, _, query = target.partition("?")
    wants = headers.get("connection", "").lower()
    close = wants == "close" or (version == "HTTP/1.0" and wants != "keep-alive")
    return MediaRequest(method, path, query, headers, close, length)


async def _object(request: MediaRequest, artifact: ArtifactState, part: PartState, action: Action | None) -> Reply:
    spec = part.spec
    sound = part.audio if action is None or action.content is None else action.content
    body = scenario.body_of(sound)
    etag = await _etag(sound, spec.etag)
    if action is not None and action.etag is not None:
        etag = action.etag
    precondition = _precondition(request.headers, etag)
    if precondition is not None:
        return precondition
    media_type = body.media_type if spec.media_type == "auto" else spec.media_type
    headers = {
        "x-amz-id-2": secrets.token_urlsafe(24),
        "x-amz-request-id": secrets.token_hex(8).upper(),
        "Server": "AmazonS3",
        "Last-Modified": format_datetime(artifact.created_at.astimezone(timezone.utc), usegmt=True),
        "Accept-Ranges": "bytes",
    }
    if etag is not None:
        headers["ETag"] = etag
    if media_type is not None:
        headers["Content-Type"] = media_type
    start, stop, status = 0, body.length, 200
    wanted = request.headers.get("range") if spec.ranges and not (action and action.ignore_range) else None
    if wanted is not None and _range_applies(request.headers.get("if-range"), etag):
        span = _span(wanted, body.length)
        if span is not None:
            start, stop = span
            if start >= stop:
                refusal = _error(416, "InvalidRange", "The requested range is not satisfiable", RangeRequested=wanted)
                refusal.headers["Content-Range"] = f"bytes */{body.length}"
                return refusal
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{body.length}"
    if status == 200 and spec.checksum != "none":
        name = "Content-MD5" if spec.checksum == "md5" else f"x-amz-checksum-{spec.checksum}"
        value = await asyncio.to_thread(scenario.digest_of, part.audio, spec.checksum)
        headers[name] = base64.b64encode(value).decode()
    return Reply(status, headers, body, start, stop, stop - start if spec.content_length else None)


def _precondition(headers: dict[str, str], etag: str | None) -> Reply | None:
    wanted = headers.get("if-match")
    if wanted is not None and wanted != "*":
        tags = [tag.strip() for tag in wanted.split(",")]
        if etag is None or etag.startswith("W/") or etag not in tags:
            message = "At least one of the pre-conditions you specified did not hold"
            return _error(412, "PreconditionFailed", message, Condition="If-Match")
    unwanted = headers.get("if-none-match")
    if unwanted is not None and etag is not None and etag in [tag.strip() for tag in unwanted.split(",")]:
        return Reply(304, {"ETag": etag})
    return None


def _range_applies(condition: str | None, etag: str | None) -> bool:
    return condition is None or (etag is not None and condition == etag and not etag.startswith("W/"))


def _span(text: str, length: int) -> tuple[int, int] | None:
    """Read a single range; None for what S3 ignores: several ranges, other units, nonsense."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text.strip())
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        return max(0, length - int(last)), length
    if last and int(last) < int(first):
        return None
    return int(first), min(length, int(last) + 1) if last else length


async def _etag(sound: scenario.Audio, kind: str | None) -> str | None:
    body = scenario.body_of(sound)
    if kind is None:
        kind = "md5" if body.length <= SINGLE_PUT else "opaque"
    if kind == "none":
        return None
    if kind == "md5":
        digest = await asyncio.to_thread(scenario.digest_of, sound, "md5")
        return f'"{digest.hex()}"'
    text = _opaque(sound)
    return f'W/"{text}"' if kind == "weak" else f'"{text}-{body.length // SINGLE_PUT + 1}"'


def _opaque(sound: scenario.Audio) -> str:
    return audio.digest_of(audio.Fixed(repr(sound).encode()), "md5").hex()


def _refusal(refused: LinkRefusedError, now: datetime) -> Reply:
    if refused.reason == "expired":
        moments = {"Expires": datetime.fromtimestamp(refused.expires, timezone.utc), "ServerTime": now}
        details = {name: moment.strftime("%Y-%m-%dT%H:%M:%SZ") for name, moment in moments.items()}
        return _error(403, "AccessDenied", "Request has expired", **details)
    if refused.reason == "missing":
        return _error(403, "AccessDenied", "Access Denied")
    message = (
        "The request signature we calculated does not match the signature you provided. Check your key and signing "
        "method."
    )
    return _error(403, "SignatureDoesNotMatch", message)


def _error(status: int, code: str, message: str, **details: str) -> Reply:
    members = {"Code": code, "Message": message, **details, "RequestId": secrets.token_hex(8).upper()}
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in members.items())
    page = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'
    return Reply.of(status, page, {"Content-Type": "application/xml", "Server": "AmazonS3"})
