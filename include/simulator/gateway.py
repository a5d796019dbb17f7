"""What stands before the API: journal, virtual ``Date``, idempotency keys and the rules that make it misbehave."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from include.simulator.wire import HangUpError, Reply, TransportWire, deliver, linger_zero

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from include.simulator.faults import ArmedRule, FaultBook
    from include.simulator.journal import Entry, Journal
    from include.simulator.world import World

KEY_LIFETIME = timedelta(hours=1)
KEYED_METHODS = frozenset({"POST", "PUT", "PATCH"})
CONTROL = "/_sim"
DOWNLOADS = "/api/v1/download/"


@dataclass
class Remembered:
    """The answer to a request with an idempotency key; None while it is in flight."""

    reply: Reply | None
    since: datetime


class Gateway:
    """An ASGI application around the API.

    :param app: the API itself.
    :param world: for its clock.
    :param journal: where requests are noted.
    :param faults: the rules in force.
    """

    def __init__(self, app: ASGIApp, world: World, journal: Journal, faults: FaultBook) -> None:
        self._app = app
        self._world = world
        self._journal = journal
        self._faults = faults
        self._remembered: dict[tuple[str, str, str], Remembered] = {}

    def forget(self) -> None:
        """Forget all idempotency keys."""
        self._remembered.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        # Recall answers both slash forms; the control API is lenient in the same way.
        tidy = path.rstrip("/") + ("" if path.startswith(CONTROL) else "/")
        inner = {**scope, "path": tidy, "raw_path": tidy.encode()}
        if path.startswith(CONTROL):
            await self._app(inner, receive, self._dated(send, None))
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        target = (path, scope["query_string"].decode("latin-1"))
        entry = self._journal.open("api", scope["method"], target, headers)
        length = dict(headers).get("content-length", "0")
        entry.body_bytes = int(length) if length.isdigit() else 0
        exchange = Exchange(inner, receive, send, entry, dict(headers))
        try:
            await self._keyed(exchange)
        except ConnectionError:
            return  # the client has gone
        finally:
            entry.finish()

    async def _keyed(self, exchange: Exchange) -> None:
        entry = exchange.entry
        if entry.idempotency_key is None or entry.method not in KEYED_METHODS:
            await self._serve(exchange, None)
            return
        user = hashlib.sha256(exchange.headers.get("authorization", "").removeprefix("Token ").encode()).hexdigest()
        key = (user, entry.path.rstrip("/"), entry.idempotency_key)
        now = self._world.now()
        known = self._remembered.get(key)
        if known is not None and known.reply is None:
            detail = "A request with the same idempotency key is in progress."
            await self._reply(exchange, Reply.of(409, {"code": "conflict", "detail": detail}, {}))
            return
        if known is not None and known.reply is not None and now - known.since < KEY_LIFETIME:
            entry.replayed = True
            await self._reply(exchange, known.reply)
            return
        memory = self._remembered[key] = Remembered(None, now)
        try:
            await self._serve(exchange, memory)
        finally:
            if memory.reply is None and self._remembered.get(key) is memory:
                del self._remembered[key]

    async def _serve(self, exchange: Exchange, memory: Remembered | None) -> None:
        entry = exchange.entry
        place = f"{entry.path}?{entry.query}" if entry.query else entry.path
        rule = self._faults.find("api", entry.method, place)
        if rule is not None:
            entry.fault = rule.name
            await self._misbehave(exchange, rule, memory)
        elif memory is not None:
            reply = await self._work(exchange)
            self._remember(memory, reply)
            await self._reply(exchange, reply)
        else:
            await self._app(exchange.scope, exchange.receive, self._dated(exchange.send, entry))

    async def _misbehave(self, exchange: Exchange, rule: ArmedRule, memory: Remembered | None) -> None:
        action = rule.action
        if action.delay:
            await asyncio.sleep(action.delay)
        if action.drop == "before":
            await exchange.drop()
            return
        if action.expired:
            exchange.scope["state"] = {**exchange.scope.get("state", {}), "expired": True}
        reply = action.instead(exchange.entry.path, exchange.scope["query_string"].decode("latin-1"))
        if reply is None or action.after_work or action.drop == "after":
            worked = await self._work(exchange)
            self._remember(memory, worked)
            reply = reply or worked
        if action.drop == "after":
            await exchange.drop()
            return
        reply = action.change(reply, exchange.url(), self._world.now())
        if memory is not None and memory.reply is None:
            self._remember(memory, reply)
        if not action.touches_wire():
            await self._reply(exchange, reply)
            return
        try:
            how = action.delivery(reply, rule.released)
            await deliver(exchange.wire(), reply, exchange.entry, now=self._world.now(), close=True, how=how)
        except HangUpError:
            await exchange.gone()

    @staticmethod
    def _remember(memory: Remembered | None, reply: Reply) -> None:
        # Dropped and refused requests leave no trace; a 507 is replayed, which Recall documents.
        if memory is not None and (reply.status < 300 or reply.status == 507):
            content = reply.content()
            memory.reply = Reply.of(reply.status, content, dict(reply.headers))

    async def _work(self, exchange: Exchange) -> Reply:
        """Let the API do its work and catch the answer."""
        status, headers, pieces = 500, {}, []

        async def catch(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            else:
                pieces.append(message.get("body", b""))

        await self._app(exchange.scope, exchange.receive, catch)
        kept = {name: value for name, value in headers.items() if name not in ("content-length", "date")}
        return Reply.of(status, b"".join(pieces), kept)

    async def _reply(self, exchange: Exchange, reply: Reply) -> None:
        send = self._dated(exchange.send, exchange.entry)
        headers = dict(reply.headers)
        if reply.status not in (204, 304):
            headers["content-length"] = str(reply.stop - reply.start)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        for piece in reply.body.read(reply.start, reply.stop):
            await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _dated(self, send: Send, entry: Entry | None) -> Send:
        """Add the virtual ``Date`` to an answer, and note what is sent."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                moment = format_datetime(self._world.now().replace(microsecond=0), usegmt=True)
                names = {name.lower() for name, _ in message["headers"]}
                if b"date" not in names:
                    message = {**message, "headers": [(b"date", moment.encode()), *message["headers"]]}
                if entry is not None:
                    entry.status = message["status"]
            elif entry is not None:
                entry.sent += len(message.get("body", b""))
                entry.complete = not message.get("more_body", False)
            await send(message)

        return dated


@dataclass
class Exchange:
    """One request and the way back to who asked."""

    scope: dict[str, Any]
    receive: Receive
    send: Send
    entry: Entry
    headers: dict[str, str]

    def url(self) -> str:
        """Give the URL that was asked for."""
        query = self.scope["query_string"].decode("latin-1")
        return f"http://{self.headers.get('host', '')}{self.entry.path}" + (f"?{query}" if query else "")

    def wire(self) -> TransportWire:
        """Reach the connection under the HTTP server: uvicorn's ``send`` is a method of the object that holds it."""
        return TransportWire(self.send.__self__.transport)  # type: ignore[attr-defined]

    async def drop(self) -> None:
        """Reset the connection."""
        transport = self.wire().transport
        linger_zero(transport.get_extra_info("socket"))
        transport.abort()
        await self.gone()

    async def gone(self) -> None:
        """Wait until the HTTP server knows that the connection has ended, or it would answer 500."""
        while (await self.receive())["type"] != "http.disconnect":
            continue
