"""Runs that start by themselves, in a real database of Airflow's."""

from __future__ import annotations

import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.utils.session import create_session
from sqlalchemy import delete, event, select, update

from include.provider import runs
from include.provider.assets import RECALL_MEETINGS
from include.provider.sweep import Owed, State

if TYPE_CHECKING:
    from collections.abc import Iterator

DAGS = Path(__file__).resolve().parents[3] / "dags"


@pytest.fixture(scope="module")
def database() -> Iterator[None]:
    """The tables of this process's own Airflow home, with the Dags as the Dag processor leaves them."""
    from airflow import settings
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.db import synchronize_log_template

    import_all_models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Base.metadata.create_all(settings.engine)
        with create_session() as session:
            session.add(DagBundleModel(name="dags-folder"))
            synchronize_log_template(session=session)
        bag = DagBag(dag_folder=str(DAGS / "archive_meeting.py"), bundle_path=DAGS, bundle_name="dags-folder")
        sync_bag_to_db(bag, "dags-folder", None)
        yield
        Base.metadata.drop_all(settings.engine)


@pytest.fixture(autouse=True)
def clean(database: None) -> Iterator[None]:
    from airflow.models.asset_state_store import AssetStateStoreModel
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun

    yield
    with create_session() as session:
        session.execute(update(DagModel).values(is_paused=False, is_stale=False))
        for one in session.scalars(select(DagRun)):
            session.delete(one)
        session.execute(delete(AssetStateStoreModel))


def start(recording_id: str, bot_id: str | None = None, user: str = "x") -> str:
    """Do what a webhook does."""
    return runs.known(recording_id, bot_id) or runs.start_run(recording_id, user)


def found() -> dict[str, Any]:
    """All runs, by id."""
    from airflow.models.dagrun import DagRun

    with create_session() as session:
        return {
            one.run_id: (str(one.state), one.conf, one.triggering_user_name) for one in session.scalars(select(DagRun))
        }


def awaits(subject: str, run_id: str) -> None:
    """Write what a wait writes before it defers."""
    from airflow._shared.state import AssetScope
    from airflow.models.asset import AssetActive, AssetModel
    from airflow.state import get_state_backend

    with create_session() as session:
        asset = session.scalar(select(AssetModel).where(AssetModel.name == RECALL_MEETINGS.name))
        if asset is None:
            asset = AssetModel(name=RECALL_MEETINGS.name, uri=RECALL_MEETINGS.name)
            session.add(asset)
            session.flush()
            session.add(AssetActive.for_asset(asset))
            session.flush()
        get_state_backend().set(AssetScope(asset_id=asset.id), subject, json.dumps(run_id), session=session)


def set_state(run_id: str, state: str) -> None:
    from airflow.models.dagrun import DagRun

    with create_session() as session:
        session.execute(update(DagRun).where(DagRun.run_id == run_id).values(state=state))


def test_a_recording_gets_one_run() -> None:
    assert start("rec-1", "bot-1", "somebody") == "started"
    assert found() == {"recording__rec-1": ("queued", {"recording_id": "rec-1"}, "somebody")}
    for state in ("queued", "running", "failed", "success"):
        set_state("recording__rec-1", state)
        assert start("rec-1", None, "another") == "exists"
    assert start("rec-2", None, "somebody") == "started"
    assert set(found()) == {"recording__rec-1", "recording__rec-2"}


def test_a_run_that_waits_for_the_bot_is_not_doubled() -> None:
    start("other", None, "somebody")
    awaits("bot-1", "recording__other")
    for state in ("queued", "running"):
        set_state("recording__other", state)
        assert start("rec-1", "bot-1", "x") == "awaited"
    awaits("rec-2", "recording__other")
    assert start("rec-2", "bot-2", "x") == "awaited"
    assert start("rec-3", None, "x") == "started"
    assert start("rec-4", "bot-2", "x") == "started"


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_run_that_has_ended_waits_for_nothing(state: str) -> None:
    start("other", None, "somebody")
    awaits("bot-1", "recording__other")
    set_state("recording__other", state)
    assert start("rec-1", "bot-1", "x") == "started"


def test_a_run_that_is_gone_waits_for_nothing() -> None:
    awaits("bot-1", "deleted")
    assert start("rec-1", "bot-1", "x") == "started"


@pytest.mark.parametrize("column", ["is_paused", "is_stale"])
def test_a_dag_that_cannot_run_starts_nothing(column: str) -> None:
    from airflow.models.dag import DagModel

    with create_session() as session:
        session.execute(update(DagModel).values({column: True}))
    with pytest.raises(runs.NotNowError, match="archive_meeting"):
        start("rec-1", None, "x")
    assert found() == {}


def test_a_dag_that_is_missing_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DAG_ID", "no_such_dag")
    with pytest.raises(runs.NotNowError, match="no_such_dag"):
        start("rec-1", None, "x")


def test_servers_that_start_the_same_run_at_once_start_it_once() -> None:
    """Both look, find nothing, and write: the database lets one of them."""
    from airflow import settings

    both = threading.Barrier(2, timeout=120)
    met = []

    def meet(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO dag_run ") and not met:
            both.wait()
            met.append(statement)

    event.listen(settings.engine, "before_cursor_execute", meet)
    try:
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda _: start("rec-1"), range(2)))
    finally:
        event.remove(settings.engine, "before_cursor_execute", meet)
    assert met
    assert sorted(outcomes) == ["exists", "started"]
    assert set(found()) == {"recording__rec-1"}


# -- what the pages ask ----------------------------------------------------------------------------------------------


class Rows:
    """The rows as a task writes them."""

    def get(self, key: str) -> Any:
        with create_session() as session:
            return runs._Rows(session).get(key)

    set = staticmethod(awaits)

    def delete(self, key: str) -> None: ...


def test_what_the_last_sweep_left_owed() -> None:
    assert runs.sweep_state() == State()
    owed = {f"rec-{number}": Owed(1000 + number, 2000 if number % 2 else None, True) for number in range(900)}
    left = State(datetime(2026, 3, 4, tzinfo=timezone.utc), owed)
    left.save(Rows())
    assert runs.sweep_state() == left


def test_the_states_of_some_recordings_runs() -> None:
    assert runs.states_of(["rec-1"]) == {}
    for number in (1, 2, 3):
        start(f"rec-{number}")
    set_state("recording__rec-2", "failed")
    assert runs.states_of(["rec-1", "rec-2", "rec-9"]) == {"rec-1": "queued", "rec-2": "failed"}
