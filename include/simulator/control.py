"""The control API under ``/_sim``: make meetings, move the clock, look behind the scenes, make things go wrong."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from include.simulator import scenario, views
from include.simulator.faults import Rule  # noqa: TC001 - FastAPI reads the annotation
from include.simulator.validation import check_create
from include.simulator.webhooks import WebhookRule  # noqa: TC001 - FastAPI reads the annotation
from include.simulator.world import BotState, RecordingState, World, format_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from include.simulator.faults import FaultBook
    from include.simulator.journal import Journal
    from include.simulator.webhooks import Webhooks


Secret = Annotated[str, Field(pattern=r"^whsec_[A-Za-z0-9+/]+={0,2}$")]


class SettingsChange(BaseModel):
    """Settings to change while running; see :class:`include.simulator.world.Settings`."""

    model_config = ConfigDict(extra="forbid")

    speed: float | None = Field(default=None, gt=0)
    link_seconds: float | None = None
    page_size: int | None = Field(default=None, ge=1)
    deleted: Literal["listed", "gone"] | None = None
    rate_limit: bool | None = None
    strict_rate: bool | None = None
    webhook_url: str | None = None
    webhook_secrets: list[Secret] | None = None
    webhook_headers: Literal["webhook", "svix", "both"] | None = None
    webhook_retry_speed: float | None = Field(default=None, gt=0)


class Advance(BaseModel):
    """A jump of the virtual clock; a negative one puts it wrong, as a test of clock skew needs."""

    model_config = ConfigDict(extra="forbid")

    seconds: float


class Control:
    """The routes under ``/_sim``.

    :param world: the state to make, move and show.
    :param journal: the requests so far.
    :param faults: the rules in force.
    :param webhooks: what was delivered, and the rules for deliveries.
    :ivar forget: called by a reset.
    """

    def __init__(self, world: World, journal: Journal, faults: FaultBook, webhooks: Webhooks) -> None:
        self._world = world
        self._journal = journal
        self._faults = faults
        self._webhooks = webhooks
        self._initial = asdict(world.settings)
        self.forget: list[Callable[[], None]] = [webhooks.forget]
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
        add("/webhooks", self.webhooks, methods=["GET"])
        add("/webhooks", self.clear_webhooks, methods=["DELETE"])
        add("/webhooks/faults", self.add_webhook_faults, methods=["POST"])

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
        hidden = ("api_key", "webhook_secrets")
        return {key: value for key, value in asdict(self._world.settings).items() if key not in hidden}

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

    async def webhooks(self) -> dict[str, Any]:
        """Show the deliveries so far, and the rules for them."""
        return self._webhooks.to_json()

    async def clear_webhooks(self) -> Response:
        """Forget the deliveries so far and the rules for them; what is under way goes on."""
        self._webhooks.deliveries.clear()
        self._webhooks.rules.clear()
        return Response(status_code=204)

    async def add_webhook_faults(self, rules: list[WebhookRule]) -> dict[str, Any]:
        """Put rules for deliveries in force, behind those that are."""
        self._webhooks.add(rules)
        return await self.webhooks()


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
