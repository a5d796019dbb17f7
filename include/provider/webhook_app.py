"""Recall's webhooks: ``POST /recall/webhooks`` on Airflow's API server, open to everybody and proven by a signature.

What is cheapest comes first, since anybody may send anything: the declared length, the headers, then the body within
bounds of size, time and memory, its signature, and only then what it says. A genuine event that tells of a recording
starts ``archive_meeting`` for it; the run asks the API itself what is true. Nothing is remembered here: the run's id
keeps a second delivery from starting a second run, over restarts and over several servers.

Only the API server imports this module, when it starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import anyio
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from include.provider import runs
from include.provider.hook import RecallHook
from include.provider.metrics import SERVICES, WEBHOOKS
from include.recall.errors import RecallConfigError, RecallEventError, RecallSignatureError
from include.recall.webhooks import parse, read_headers, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import Request

log = logging.getLogger(__name__)

LARGEST_BODY = 256 * 1024
BODY_SECONDS = 5.0
"""How long a body may take to arrive, as a whole."""
MOST_HELD = 4 * 1024 * 1024
"""Bytes of bodies still arriving that are held at once; beyond it the one that began first is refused."""
START_SECONDS = 10.0
"""How long starting a run may take before the sender is told to come again; it gives up after 15 s."""
SECRETS_SECONDS = 15.0
"""How long the secrets count as read; after so long at most, a new one is known and an old one forgotten."""
SECRETS_RETRY_SECONDS = 2.0
REFUSALS_SECONDS = 30.0
"""How often at most the log says how many messages were refused: a flood of them shall not be one of lines."""
LOOKING_THREADS = 2

STATUS = {runs.STARTED: 202, runs.EXISTS: 200, runs.AWAITED_ALREADY: 200, "noted": 200}


class _Answer(Exception):  # noqa: N818 - an answer that ends the work early, most often a refusal
    """The end of a request.

    :param status: the HTTP status.
    :param reason: a word for the answer and the log.
    :param close: end the connection too, because its body has not been read.
    """

    def __init__(self, status: int, reason: str, *, close: bool = False) -> None:
        super().__init__(reason)
        self.status, self.reason, self.close = status, reason, close


class Bodies:
    """The bodies that are arriving: each bounded in size and time, all of them together in memory."""

    def __init__(self) -> None:
        self._arriving: dict[anyio.CancelScope, int] = {}
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """Read a whole body.

        :raises ClientDisconnect: the sender has gone.
        :raises _Answer: it is too large, too slow, or in the way of too many others.
        """
        body = bytearray()
        with anyio.move_on_after(BODY_SECONDS) as scope:
            self._arriving[scope] = 0
            try:
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk = message.get("body", b"")
                    if len(body) + len(chunk) > LARGEST_BODY:
                        raise _Answer(413, "too_large", close=True)
                    body += chunk
                    if not message.get("more_body", False):
                        return bytes(body)
                    self._hold(scope, len(chunk))
            finally:
                self._held -= self._arriving.pop(scope, 0)
        raise _Answer(408, "too_slow", close=True)

    def _hold(self, scope: anyio.CancelScope, count: int) -> None:
        if scope in self._arriving:
            self._arriving[scope] += count
            self._held += count
        while self._held > MOST_HELD:
            first = next(iter(self._arriving))
            self._held -= self._arriving.pop(first)
            first.cancel()


class Keys:
    """The active signing keys, read from the connection at most every few seconds, whoever asks and however often.

    :param read: reads them; blocks.
    """

    def __init__(self, read: Callable[[], list[bytes]]) -> None:
        self._read = read
        self._keys: list[bytes] | None = None
        self._until = float("-inf")
        self._turn = asyncio.Lock()

    async def get(self) -> list[bytes]:
        """Return the keys; none means that nothing can be proven.

        :raises _Answer: they can't be read now.
        """
        if time.monotonic() >= self._until:
            async with self._turn:
                if time.monotonic() >= self._until:
                    await self._renew()
        if self._keys is None:
            raise _Answer(503, "secrets_unreadable")
        return self._keys

    async def _renew(self) -> None:
        lifetime = SECRETS_RETRY_SECONDS
        try:
            self._keys = await asyncio.wait_for(asyncio.to_thread(self._read), START_SECONDS)
            lifetime = SECRETS_SECONDS
            if not self._keys:
                log.error("Every webhook is refused: Airflow connection recall_default has no extra.webhook_secrets")
        except RecallConfigError as error:
            self._keys = []
            log.error("Every webhook is refused: %s", error)
        except Exception as error:  # a secrets backend may raise anything
            self._keys = None
            log.error("Webhooks are put off: the secrets can't be read (%s)", type(error).__name__)
        self._until = time.monotonic() + lifetime


def read_keys() -> list[bytes]:
    """Read the keys from the connection ``recall_default``.

    :raises Exception: the database can't be reached; Airflow itself says then that there is no such connection.
    """
    from airflow.sdk.exceptions import AirflowNotFoundException
    from airflow.utils.session import create_session
    from sqlalchemy import text

    try:
        return RecallHook().webhook_keys()
    except AirflowNotFoundException:
        with create_session(scoped=False) as session:
            session.execute(text("SELECT 1"))
        return []


class Receiver:
    """What answers a webhook.

    :param keys: the active signing keys.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._bodies = Bodies()
        # Of their own, few: whatever is sent, the other pages keep their threads and connections to the database.
        self._looking = ThreadPoolExecutor(LOOKING_THREADS, thread_name_prefix="recall-webhook-look")
        self._starting = ThreadPoolExecutor(1, thread_name_prefix="recall-webhook-start")
        self._rested = 0.0
        self._refused: Counter[str] = Counter()
        self._refusals_logged = float("-inf")

    async def __call__(self, request: Request) -> Response:
        """Answer: 202 for a run that was started, 200 for any other genuine event, else an error that says why."""
        try:
            outcome = await self._receive(request)
            WEBHOOKS.add(at=SERVICES, outcome=outcome)
            return JSONResponse({"outcome": outcome}, STATUS[outcome])
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except _Answer as answer:
            self._count(answer.reason)
            WEBHOOKS.add(at=SERVICES, outcome=answer.reason)
            headers = {"Connection": "close"} if answer.close else None
            return JSONResponse({"error": answer.reason}, answer.status, headers)

    async def _receive(self, request: Request) -> str:
        declared = request.headers.get("content-length", "")
        small = declared.isdecimal() and len(declared) < 10 and int(declared) <= LARGEST_BODY
        if declared and not small:
            raise _Answer(413, "too_large", close=True)
        try:
            claims = read_headers(request.headers.items(), time.time())
            body = await self._bodies.read(request)
            message_id = verify(claims, body, await self._keys.get()).message_id
        except RecallSignatureError as error:
            raise _Answer(401, error.code, close=not small) from None
        try:
            event = parse(body)
        except RecallEventError as error:
            log.warning("Webhook %s is genuine and no event: %s", message_id, error)
            raise _Answer(400, error.code) from None
        if event.starts is None:
            return "noted"
        outcome = await self._start(event.starts, event.bot_id)
        log.info("Webhook %s: %s for recording %s: %s", message_id, event.name, event.starts, outcome)
        return outcome

    async def _start(self, recording_id: str, bot_id: str | None) -> str:
        try:
            return await asyncio.wait_for(self._look_and_start(recording_id, bot_id), START_SECONDS)
        except runs.NotNowError as error:
            reason = str(error)
        except Exception as error:  # whatever the database says: 5xx, so that it is sent again
            reason = type(error).__name__
        log.error("Nothing starts for recording %s, it has to be sent again: %s", recording_id, reason)
        raise _Answer(503, "not_now")

    async def _look_and_start(self, recording_id: str, bot_id: str | None) -> str:
        loop = asyncio.get_running_loop()
        if reason := await loop.run_in_executor(self._looking, runs.known, recording_id, bot_id):
            return reason
        return await loop.run_in_executor(self._starting, self._start_in_turn, recording_id)

    def _start_in_turn(self, recording_id: str) -> str:
        # Making a run is computing, twenty milliseconds of it. While a thread computes, the event loop gets the
        # interpreter back only a few hundred times a second, too seldom for a flood: so it rests as long as it worked.
        time.sleep(max(0.0, self._rested - time.monotonic()))
        worked = time.thread_time()
        try:
            return runs.start_run(recording_id, "recall webhook")
        finally:
            self._rested = time.monotonic() + time.thread_time() - worked

    def _count(self, reason: str) -> None:
        self._refused[reason] += 1
        now = time.monotonic()
        if now - self._refusals_logged >= REFUSALS_SECONDS:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self._refused.items()))
            log.warning("Refused webhooks: %s", counts)
            self._refused.clear()
            self._refusals_logged = now


def make_router() -> APIRouter:
    """Build the router, with a receiver of its own."""
    router = APIRouter()
    receiver = Receiver(Keys(read_keys))

    async def receive(request: Request) -> Response:
        return await receiver(request)

    # A plain route: FastAPI would look for parameters, and need longer for that than the refusal of a forged message.
    router.add_route("/webhooks", receive, methods=["POST"])
    return router
