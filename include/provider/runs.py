"""The runs of ``archive_meeting`` that start by themselves, and what is known between runs, where the database is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.provider.assets import RECALL_MEETINGS
from include.provider.awaited import run_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from include.provider.sweep import State as SweepState

DAG_ID = "archive_meeting"
STARTED = "started"
EXISTS = "exists"
AWAITED_ALREADY = "awaited"


class NotNowError(Exception):
    """No run can be started at the moment; the message says why."""


def conf_of(recording_id: str) -> dict[str, Any]:
    """Return the params of that run."""
    return {"recording_id": recording_id}


def known(recording_id: str, bot_id: str | None) -> str | None:
    """Tell why no run is to be started for a recording; cheap. For Airflow's API server, not for tasks.

    :param bot_id: a run that waits for this bot, or for the recording, makes a second one needless.
    :return: ``exists``, because its run was started before; ``awaited``, because a run waits for it; else ``None``.
    :raises NotNowError: the Dag is missing or paused.
    """
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        if _state(session, run_id_of(recording_id)) is not None:
            return EXISTS
        _check_dag(session)
        if any(_is_awaited(session, subject) for subject in (bot_id, recording_id) if subject is not None):
            return AWAITED_ALREADY
    return None


def start_run(recording_id: str, user: str) -> str:
    """Start the archiving of a recording. For Airflow's API server, not for tasks.

    :param recording_id: checked before, since it becomes part of an id.
    :param user: who is shown to have started it.
    :return: ``started``; or ``exists``, because another server was faster.
    :raises NotNowError: the Dag is missing.
    """
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import DagNotFound, DagRunAlreadyExists
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType
    from sqlalchemy.exc import IntegrityError

    run_id = run_id_of(recording_id)
    try:
        with create_session(scoped=False) as session:
            trigger_dag(
                DAG_ID,
                triggered_by=DagRunTriggeredByType.REST_API,
                triggering_user_name=user,
                run_id=run_id,
                conf=conf_of(recording_id),
                session=session,
            )
    except DagRunAlreadyExists:
        return EXISTS
    except DagNotFound as error:
        raise NotNowError(str(error)) from None
    except IntegrityError:
        # Another API server was faster by a moment.
        with create_session(scoped=False) as session:
            if _state(session, run_id) is None:
                raise
        return EXISTS
    return STARTED


def sweep_state() -> SweepState:
    """Return what the last sweep left behind. For Airflow's API server, not for tasks."""
    from airflow.utils.session import create_session

    from include.provider.sweep import State

    with create_session(scoped=False) as session:
        return State.load(_Rows(session))


def states_of(recording_ids: Sequence[str]) -> dict[str, str]:
    """Return the states of the automatic runs of some recordings, of those that have one. For Airflow's API server."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    ids = {run_id_of(one): one for one in recording_ids}
    with create_session(scoped=False) as session:
        found = session.execute(
            select(DagRun.run_id, DagRun.state).where(DagRun.dag_id == DAG_ID, DagRun.run_id.in_(ids))
        )
        return {ids[run_id]: str(state) for run_id, state in found}


def _state(session: Session, run_id: str) -> str | None:
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    state = session.scalar(select(DagRun.state).where(DagRun.dag_id == DAG_ID, DagRun.run_id == run_id))
    return None if state is None else str(state)


def _check_dag(session: Session) -> None:
    from airflow.models.dag import DagModel
    from sqlalchemy import select

    row = session.execute(select(DagModel.is_paused, DagModel.is_stale).where(DagModel.dag_id == DAG_ID)).one_or_none()
    if row is None or row.is_stale:
        raise NotNowError(f"there is no Dag {DAG_ID}")
    if row.is_paused:
        raise NotNowError(f"the Dag {DAG_ID} is paused")


def _is_awaited(session: Session, subject: str) -> bool:
    run_id = _Rows(session).get(subject)
    # A run that has ended waits for nothing, whatever it left behind.
    return isinstance(run_id, str) and _state(session, run_id) in {"queued", "running"}


class _Rows:
    """What is known about the workspace's meetings between runs, read where the database is."""

    def __init__(self, session: Session) -> None:
        from airflow.models.asset import AssetModel
        from sqlalchemy import select

        active = select(AssetModel.id).where(AssetModel.name == RECALL_MEETINGS.name, AssetModel.active.has())
        self._session, self._asset_id = session, session.scalar(active)

    def get(self, key: str) -> Any:
        import json

        from airflow._shared.state import AssetScope
        from airflow.state import get_state_backend

        if self._asset_id is None:
            return None
        stored = get_state_backend().get(AssetScope(asset_id=self._asset_id), key, session=self._session)
        return None if stored is None else json.loads(stored)
