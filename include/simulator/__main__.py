"""Command line: ``python -m include.simulator``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import uvicorn

from include.simulator.app import create_app
from include.simulator.faults import FaultBook
from include.simulator.journal import Journal
from include.simulator.media import MediaServer
from include.simulator.webhooks import Webhooks
from include.simulator.world import Settings, World

if TYPE_CHECKING:
    from collections.abc import Iterator


class _ApiServer(uvicorn.Server):
    """uvicorn without signal handlers of its own: both origins end together, and at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def _arguments() -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m include.simulator", description="Stand in for Recall.ai.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9100, help="of the API; 0 takes a free one (%(default)s)")
    parser.add_argument(
        "--media-port", type=int, default=9101, help="of the media host; 0 takes a free one (%(default)s)"
    )
    parser.add_argument("--api-key", default=defaults.api_key, help="the key that the API accepts (%(default)s)")
    parser.add_argument("--speed", type=float, default=defaults.speed, help="virtual seconds per second (%(default)s)")
    parser.add_argument(
        "--link-seconds", type=float, default=defaults.link_seconds, help="lifetime of download links (%(default)s)"
    )
    parser.add_argument("--page-size", type=int, default=defaults.page_size, help="entries per page (%(default)s)")
    parser.add_argument(
        "--deleted",
        choices=["listed", "gone"],
        default=defaults.deleted,
        help="what becomes of deleted media (%(default)s)",
    )
    parser.add_argument("--no-rate-limit", action="store_true", help="never answer 429 of its own accord")
    parser.add_argument("--strict-rate", action="store_true", help="count refused requests too")
    parser.add_argument("--webhook-url", default="", help="tell what happens to this URL")
    parser.add_argument(
        "--webhook-secret", action="append", default=[], type=_secret, help="sign with this whsec_...; may be repeated"
    )
    parser.add_argument(
        "--webhook-headers",
        choices=["webhook", "svix", "both"],
        default=defaults.webhook_headers,
        help="names of the signature's headers (%(default)s)",
    )
    parser.add_argument(
        "--webhook-retry-speed", type=float, default=1.0, help="try again so much faster than Svix (%(default)s)"
    )
    return parser.parse_args()


def _secret(text: str) -> str:
    if not re.fullmatch(r"whsec_[A-Za-z0-9+/]+={0,2}", text):
        raise argparse.ArgumentTypeError("not whsec_ and base64")
    return text


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=1024)
    # Inherited by connections. asyncio leaves it out here, and each answer would wait 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _announce(host: str, api_port: int, media_port: int, settings: Settings) -> None:
    api_key = settings.api_key
    shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host  # noqa: S104
    base_url, media_host = f"http://{shown}:{api_port}", f"{shown}:{media_port}"
    extra: dict[str, Any] = {"region": "us-east-1", "media_hosts": [media_host]}
    if settings.webhook_secrets:
        extra["webhook_secrets"] = settings.webhook_secrets
    connection = {"conn_type": "recall", "host": base_url, "password": api_key, "extra": extra}
    facts = {
        "base_url": base_url,
        "media_host": media_host,
        "media_url": f"http://{media_host}",
        "control_url": f"{base_url}/_sim",
        "api_key": api_key,
        "connection": connection,
    }
    lines = [
        json.dumps(facts),
        "",
        "Recall.ai simulator",
        f"  base URL    {base_url}",
        f"  media host  {media_host}",
        f"  API key     {api_key}",
        f"  control     {base_url}/_sim/docs",
        "",
        f"  export AIRFLOW_CONN_RECALL_DEFAULT='{json.dumps(connection)}'",
        "",
    ]
    print("\n".join(lines), flush=True)


async def _serve(arguments: argparse.Namespace) -> None:
    settings = Settings(
        api_key=arguments.api_key,
        speed=arguments.speed,
        link_seconds=arguments.link_seconds,
        page_size=arguments.page_size,
        deleted=arguments.deleted,
        rate_limit=not arguments.no_rate_limit,
        strict_rate=arguments.strict_rate,
        webhook_url=arguments.webhook_url,
        webhook_secrets=arguments.webhook_secret,
        webhook_headers=arguments.webhook_headers,
        webhook_retry_speed=arguments.webhook_retry_speed,
    )
    world, journal, faults = World(settings), Journal(), FaultBook()
    webhooks = Webhooks(world)
    with (
        _listen(arguments.host, arguments.port) as api_socket,
        _listen(arguments.host, arguments.media_port) as media_socket,
    ):
        api_port, media_port = api_socket.getsockname()[1], media_socket.getsockname()[1]
        app = create_app(world, journal, faults, webhooks, media_port=media_port)
        # h11 and the standard loop: the gateway reaches through to the transport and its socket.
        config = uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            lifespan="off",
            log_level="warning",
            access_log=False,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=0,
        )
        server = _ApiServer(config)

        def stop() -> None:
            server.should_exit = server.force_exit = True
            # Answers that are cut off now are cut off on purpose; uvicorn would print a traceback for each.
            logging.getLogger("uvicorn.error").disabled = True

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        media = asyncio.create_task(MediaServer(world, journal, faults).serve(media_socket))
        telling = asyncio.create_task(webhooks.run())
        _announce(arguments.host, api_port, media_port, settings)
        await server.serve(sockets=[api_socket])
        webhooks.forget()
        for task in (media, telling):
            task.cancel()
        await asyncio.gather(media, telling, return_exceptions=True)


def main() -> int:
    """Run both origins until SIGTERM or SIGINT."""
    arguments = _arguments()
    try:
        asyncio.run(_serve(arguments))
    except OSError as error:
        print(f"cannot listen: {error}; --port and --media-port choose others, 0 takes a free one", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
