"""Which run waits for which bot, so that the sweep and the webhook don't start a second one.

One row for each bot in the asset state store of :data:`~include.provider.assets.RECALL_MEETINGS`: the key is the bot's
id, or the recording's where a run waits for that alone; the value is the id of the run of ``archive_meeting``. A row
counts only while that run is queued or running, so one that was left behind harms nobody. Runs that the sweep or a
webhook starts have none: their run id names the recording already.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError

from include.errors import CodedError
from include.provider.assets import RECALL_MEETINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk import Context

log = logging.getLogger(__name__)

AUTOMATIC_PREFIX = "recording__"
"""What the id of a run begins with that the sweep or a webhook started; the recording's id follows."""


def run_id_of(recording_id: str) -> str:
    """Return the id of the automatic run for a recording."""
    return AUTOMATIC_PREFIX + recording_id


def is_automatic(context: Context) -> bool:
    """Tell whether nobody but the sweep or a webhook asked for this run."""
    return str(context["run_id"]).startswith(AUTOMATIC_PREFIX)


@contextmanager
def waiting_for(context: Context, subject: str, *, announce: bool = True) -> Iterator[None]:
    """Let it be known that this run looks after a bot or a recording; if that fails for good, take it back.

    :param subject: id of the bot, or of the recording where that is all that is waited for.
    :param announce: write the row; ``False`` where an earlier step of the same run has.
    """
    if announce:
        with _rows(context) as rows:
            rows.set(subject, context["run_id"])
    try:
        yield
    except CodedError as error:
        if error.permanent:
            forget(context, subject)
        raise


def forget(context: Context, *subjects: str | None) -> None:
    """Remove the rows that are this run's own.

    :param subjects: ids that may have one.
    """
    with _rows(context) as rows:
        for subject in filter(None, subjects):
            if rows.get(subject) == context["run_id"]:
                rows.delete(subject)


class _NoRows:
    """What a run gets that needs no row."""

    def get(self, key: str) -> None: ...

    def set(self, key: str, value: str) -> None: ...

    def delete(self, key: str) -> None: ...


@contextmanager
def _rows(context: Context) -> Iterator[Any]:
    """Give the rows; nothing that goes wrong with them is worth failing a meeting for."""
    rows: Any = _NoRows()
    if not is_automatic(context):
        with suppress(KeyError):  # somebody's own Dag, which doesn't name the asset
            rows = context["asset_state_store"][RECALL_MEETINGS]
    try:
        yield rows
    except AirflowRuntimeError as error:
        log.warning("Could not note which run waits for which bot, so another may be started for it: %s", error)
