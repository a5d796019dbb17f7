"""What this project adds to Airflow's API server: everything under ``/recall``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin


class RecallPlugin(AirflowPlugin):
    """Serve the archive's pages, and receive Recall's webhooks.

    Every component loads plugins, each task too, but only the API server asks for the app: it is built then.
    """

    name = "recall"

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Build the app; a new group of pages is one more router."""
        from fastapi import FastAPI

        from include.provider import archive_page, webhook_app

        app = FastAPI(title="Recall audio archive", openapi_url=None)
        app.include_router(archive_page.router)
        app.include_router(webhook_app.make_router())
        return [{"app": app, "url_prefix": "/recall", "name": "Recall audio archive"}]
