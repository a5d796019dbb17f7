"""Webhooks: what happens in the workspace is told to a URL, signed, and sent again until it is taken."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import re
import time
import uuid
from collections import deque
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import Field

from include.simulator.scenario import Model, Pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.world import BotState, World

RETRY_SECONDS = (0, 5, 300, 1800, 7200, 18_000, 36_000, 36_000)
"""The wait before each attempt, as Svix has it: 27.6 hours in all."""
TIMEOUT_SECONDS = 15.0
HISTORY = timedelta(hours=1)
"""What happened longer before the simulator first saw a bot is not told."""
SILENT = frozenset({"media_expired", "recording_done", "analysis_done", "analysis_failed"})
"""Codes of a bot that no webhook tells of."""
PREFIX = "whsec_"
LIMIT = 100_000
_PAUSE = 0.05
_AT_ONCE = 50


class WebhookRule(Model):
    """What goes wrong with a delivery. The first rule that matches an attempt and is not used up applies.

    :param event: regular expression, searched in the event's name.
    :param skip: let that many matching attempts through first.
    :param times: apply to that many attempts, then no more; null for ever.
    :param chance: of applying to an attempt that matches, 0 to 1; drawn from a generator that begins anew at a reset.
    :param lose: neither send it nor try again.
    :param copies: send it so many times at once.
    :param delay: real seconds to wait first, so that others overtake it.
    :param age: seconds by which its timestamp is too old; a negative one lies ahead.
    :param forge: sign with a secret that nobody knows.
    """

    event: Pattern = ""
    skip: int = Field(default=0, ge=0)
    times: int | None = Field(default=1, ge=1)
    chance: float = Field(default=1.0, ge=0, le=1)
    lose: bool = False
    copies: int = Field(default=1, ge=1, le=100)
    delay: float = Field(default=0.0, ge=0)
    age: float = 0.0
    forge: bool = False


@dataclass
class ArmedWebhookRule:
    """A rule and how often it has matched and been applied."""

    rule: WebhookRule
    matched: int = 0
    applied: int = 0

    def takes(self, event: str, chance: random.Random) -> bool:
        """Tell whether an attempt is to be spoilt, and count it."""
        rule = self.rule
        if not re.search(rule.event, event) or (rule.times is not None and self.applied >= rule.times):
            return False
        self.matched += 1
        if self.matched <= rule.skip or chance.random() >= rule.chance:
            return False
        self.applied += 1
        return True


@dataclass
class Delivery:
    """One attempt.

    :ivar time: real seconds since 1970.
    :ivar message_id: the same for all attempts at one message.
    :ivar attempt: counts from 1.
    :ivar status: of the answer; null while there is none, or when no answer came.
    :ivar seconds: that the answer took.
    :ivar fault: what a rule did to it: ``lost``, ``doubled``, ``delayed``, ``stale``, ``forged``; null for nothing.
    """

    time: float
    message_id: str
    event: str
    bot_id: str | None
    recording_id: str | None
    attempt: int
    status: int | None = None
    seconds: float | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Message:
    """An event as it is sent."""

    message_id: str
    event: str
    bot_id: str | None
    recording_id: str | None
    body: bytes


class Webhooks:
    """What watches the world and delivers.

    :param world: the state, and the settings with the URL, the secrets and the families of headers.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self.forget()

    def forget(self) -> None:
        """Forget what was told, the rules, and everything that is still to be delivered."""
        for task in self._tasks:
            task.cancel()
        self._told: dict[str, set[tuple[str, ...]]] = {}
        self.deliveries: deque[Delivery] = deque(maxlen=LIMIT)
        self.rules: list[ArmedWebhookRule] = []
        self._chance = random.Random(0)  # noqa: S311 - no secret

    def add(self, rules: list[WebhookRule]) -> None:
        """Put further rules behind those in force."""
        self.rules += [ArmedWebhookRule(rule) for rule in rules]

    def to_json(self) -> dict[str, Any]:
        """Show rules and deliveries, and how many are under way."""
        return {
            "rules": [
                {**armed.rule.model_dump(exclude_unset=True), "matched": armed.matched, "applied": armed.applied}
                for armed in self.rules
            ],
            "under_way": len(self._tasks),
            "deliveries": [asdict(one) for one in self.deliveries],
        }

    async def run(self) -> None:
        """Tell what happens, as long as there is a URL to tell it to."""
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            while True:
                began = time.monotonic()
                if self._world.settings.webhook_url:
                    for message in self._news():
                        self._begin(self._deliver(client, message))
                # A large world takes longer to look through, and may not keep the simulator from answering.
                await asyncio.sleep(max(_PAUSE, 5 * (time.monotonic() - began)))

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _news(self) -> list[Message]:
        now = self._world.now()
        news: list[tuple[datetime, Message]] = []
        for bot in list(self._world.bots.values()):
            known = self._told.get(bot.id)
            told = self._told.setdefault(bot.id, set())
            for key, stamp, happened, data in happenings(bot, now):
                if key not in told:
                    told.add(key)
                    if known is not None or now - happened <= HISTORY:
                        news.append((stamp, _message(key[-1], data)))
        return [message for _, message in sorted(news, key=lambda one: one[0])]

    async def _deliver(self, client: httpx.AsyncClient, message: Message) -> None:
        for attempt, wait in enumerate(RETRY_SECONDS, start=1):
            await asyncio.sleep(wait / self._world.settings.webhook_retry_speed)
            rule = next((one.rule for one in self.rules if one.takes(message.event, self._chance)), WebhookRule())
            if rule.lose:
                self._note(message, attempt, "lost")
                return
            await asyncio.sleep(rule.delay)
            copies = [self._attempt(client, message, attempt, rule) for _ in range(rule.copies)]
            if any(await asyncio.gather(*copies)):
                return

    async def _attempt(self, client: httpx.AsyncClient, message: Message, attempt: int, rule: WebhookRule) -> bool:
        names = (("forged", rule.forge), ("stale", rule.age), ("doubled", rule.copies > 1), ("delayed", rule.delay))
        settings = self._world.settings
        async with self._turn:
            entry = self._note(message, attempt, next((name for name, is_so in names if is_so), None))
            began = time.monotonic()
            secrets = (
                [PREFIX + base64.b64encode(uuid.uuid4().bytes).decode()] if rule.forge else settings.webhook_secrets
            )
            headers = sign(message, int(time.time() - rule.age), secrets, settings.webhook_headers)
            with contextlib.suppress(httpx.HTTPError):
                answer = await client.post(settings.webhook_url, content=message.body, headers=headers)
                entry.status = answer.status_code
            entry.seconds = round(time.monotonic() - began, 6)
        return entry.status is not None and 200 <= entry.status < 300

    def _note(self, message: Message, attempt: int, fault: str | None) -> Delivery:
        entry = Delivery(
            round(time.time(), 3),
            message.message_id,
            message.event,
            message.bot_id,
            message.recording_id,
            attempt,
            fault=fault,
        )
        self.deliveries.append(entry)
        return entry


def sign(message: Message, timestamp: int, secrets: list[str], families: str) -> dict[str, str]:
    """Return the headers of a delivery.

    :param secrets: each gives a signature.
    :param families: ``webhook``, ``svix`` or ``both``.
    """
    content = f"{message.message_id}.{timestamp}.".encode() + message.body
    signatures = []
    for secret in secrets:
        digest = hmac.new(base64.b64decode(secret.removeprefix(PREFIX)), content, hashlib.sha256).digest()
        signatures.append("v1," + base64.b64encode(digest).decode())
    headers = {"content-type": "application/json"}
    # Without a secret Recall sends no such headers at all.
    for family in (("webhook", "svix") if families == "both" else (families,)) if secrets else ():
        headers[f"{family}-id"] = message.message_id
        headers[f"{family}-timestamp"] = str(timestamp)
        headers[f"{family}-signature"] = " ".join(signatures)
    return headers


def happenings(bot: BotState, now: datetime) -> Iterator[tuple[tuple[str, ...], datetime, datetime, dict[str, Any]]]:
    """Yield what has happened to a bot and all under it: a key, the timestamp, when it happened, and the payload.

    The last member of the key is the event's name.
    """
    own = {"bot": {"id": bot.id, "metadata": bot.request.get("metadata") or {}}}
    for index, (step, stamp) in enumerate(bot.status_changes(now)):
        if step.code not in SILENT:
            data = _data(step.code, step.sub_code, stamp)
            yield (bot.id, str(index), f"bot.{step.code}"), stamp, bot.happens(step.at), {"data": data, **own}
    for recording in bot.recordings:
        about = {"recording": {"id": recording.id, "metadata": recording.metadata or {}}, **own}
        if recording.exists(now):
            data = _data("processing", None, recording.created_at)
            key = (recording.id, "recording.processing")
            yield key, recording.created_at, bot.happens(recording.starts), {"data": data, **about}
            code, sub_code, stamp = recording.status(now)
            if code != "processing":
                happened = stamp if code == "deleted" else bot.happens(recording.settled)
                yield (
                    (recording.id, f"recording.{code}"),
                    stamp,
                    happened,
                    {"data": _data(code, sub_code, stamp), **about},
                )
        for artifact in recording.artifacts:
            if not artifact.is_listed(now):
                continue
            more = {"audio_separate": {"id": artifact.id, "metadata": artifact.metadata or {}}, **about}
            data = _data("processing", None, artifact.created_at)
            key = (artifact.id, "audio_separate.processing")
            yield key, artifact.created_at, bot.happens(recording.starts), {"data": data, **more}
            code, sub_code, stamp = artifact.status(now)
            if code != "processing":
                happened = stamp if code == "deleted" else bot.happens(artifact.settled)
                data = _data(code, sub_code, stamp)
                yield (artifact.id, f"audio_separate.{code}"), stamp, happened, {"data": data, **more}


def _data(code: str, sub_code: str | None, stamp: datetime) -> dict[str, Any]:
    return {"code": code, "sub_code": sub_code, "updated_at": stamp.isoformat(timespec="microseconds")}


def _message(event: str, data: dict[str, Any]) -> Message:
    body = json.dumps({"event": event, "data": data}, separators=(",", ":")).encode()
    recording = data.get("recording") or {}
    return Message(f"msg_{uuid.uuid4().hex}", event, data["bot"]["id"], recording.get("id"), body)
