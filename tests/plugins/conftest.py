from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # Airflow's server imports Starlette's test client, which warns that it would rather have another HTTP library.
    warnings.simplefilter("ignore")
    import airflow.api_fastapi.app as airflow_app

from airflow._shared.plugins_manager import plugins_manager
from airflow.models.dag import DagModel
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jwt import InvalidTokenError

from include.archive.stores import LocalStore
from include.provider import archive_page

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"Authorization": "Bearer good"}


@dataclass
class AuthManager:
    """An auth manager that knows one token, and notes what it was asked."""

    allows: bool = True
    asked: dict[str, Any] | None = None

    async def get_user_from_token(self, token: str) -> str:
        if token != "good":
            raise InvalidTokenError("not mine")
        return "somebody"

    def is_authorized_dag(self, **asked: Any) -> bool:
        self.asked = asked
        return self.allows


@pytest.fixture
def auth(monkeypatch: pytest.MonkeyPatch) -> AuthManager:
    manager = AuthManager()
    monkeypatch.setattr(airflow_app._AuthManagerState, "instance", manager)
    monkeypatch.setattr(DagModel, "get_team_name", staticmethod(lambda dag_id: None))
    return manager


@pytest.fixture
def anybody(auth: AuthManager) -> TestClient:
    """Airflow's server as far as a plugin's app sees it, without a token."""
    (plugin,), errors = plugins_manager._load_plugins_from_plugin_directory(str(ROOT / "plugins"))
    assert errors == {}
    (described,) = plugin.fastapi_apps
    server = FastAPI()
    server.mount(described["url_prefix"], described["app"])
    return TestClient(server, follow_redirects=False)


@pytest.fixture
def client(anybody: TestClient) -> TestClient:
    anybody.headers.update(GOOD)
    return anybody


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    store = LocalStore(root=tmp_path / "archive")
    monkeypatch.setattr(archive_page, "open_archive", lambda: store)
    return store
