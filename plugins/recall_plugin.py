"""What this project adds to Airflow's API server: everything under ``/recall``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin

# Bars of a recording, as an address that needs no server; with a rim, since the menu's colour changes behind it.
_BARS = "<path d='M3 8v4M6.5 5v10M10 2.5v15M13.5 6v8M17 8.5v3'/>"
ICON = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 20 20' stroke-linecap='round'>"
    f"<g stroke='{{rim}}' stroke-width='3.4'>{_BARS}</g><g stroke='{{colour}}' stroke-width='1.7'>{_BARS}</g></svg>"
)


class RecallPlugin(AirflowPlugin):
    """Serve the archive's pages, with an entry for them in Airflow's menu, and receive Recall's webhooks.

    Every component loads plugins, each task too, but only the API server asks for the app: it is built then.
    """

    name = "recall"
    external_views = [
        {
            "name": "Recall",
            # Relative, so that it is found wherever a proxy has put Airflow.
            "href": "recall/archive/",
            "destination": "nav",
            "url_route": "recall-archive",
            "nav_top_level": True,
            "icon": ICON.format(colour="%233f4a5a", rim="%23e4ecf7"),
            "icon_dark_mode": ICON.format(colour="%23d4d4d8", rim="none"),
        }
    ]

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Build the app; a new group of pages is one more router."""
        from fastapi import FastAPI

        from include.provider import archive_page, webhook_app

        app = FastAPI(title="Recall audio archive", openapi_url=None)
        app.include_router(archive_page.router)
        app.include_router(webhook_app.make_router())
        return [{"app": app, "url_prefix": "/recall", "name": "Recall audio archive"}]
