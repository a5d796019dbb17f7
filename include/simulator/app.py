"""The API origin put together: the API, the control API beside it, and the gateway before both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from include.simulator import views
from include.simulator.api import Api, ApiError
from include.simulator.control import Control
from include.simulator.gateway import Gateway

if TYPE_CHECKING:
    from include.simulator.faults import FaultBook
    from include.simulator.journal import Journal
    from include.simulator.webhooks import Webhooks
    from include.simulator.world import World


def create_app(world: World, journal: Journal, faults: FaultBook, webhooks: Webhooks, *, media_port: int) -> Gateway:
    """Put the API origin together.

    :param world: the state.
    :param journal: where requests are noted.
    :param faults: the rules in force.
    :param webhooks: what tells of events.
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
    control = Control(world, journal, faults, webhooks)
    app.include_router(api.router)
    app.include_router(control.router)

    @app.get("/dashboard/explorer/bot/{bot_id}/", include_in_schema=False)
    async def dashboard(bot_id: str) -> HTMLResponse:
        """Stand in for the bot's page in Recall's dashboard, where links to it lead."""
        bot = world.bots.get(bot_id)
        if bot is None:
            return HTMLResponse("<!DOCTYPE html><title>No such bot</title><h1>No such bot</h1>", 404)
        return HTMLResponse(views.dashboard(bot, world.now()))

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
