"""An Airflow that holds still while its command line writes to the database that they share."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.local_airflow import LocalAirflow


@contextlib.contextmanager
def at_rest(airflow: LocalAirflow) -> Iterator[None]:
    """Stop all of Airflow's processes at a moment at which none is writing, and let them go on afterwards.

    SQLite lets one process write at a time. Another that has read and then wants to write is not made to wait, but told
    that the database is locked, and Airflow's command line gives up on that; with a real database server nobody would.
    """
    end = time.monotonic() + 600
    while True:
        stopped = [one for pid in airflow.pids.values() for one in _family(pid)]
        try:
            _signal_all(stopped, "suspend")
            if _nobody_writes(airflow):
                yield
                return
        finally:
            _signal_all(stopped, "resume")
        assert time.monotonic() < end
        time.sleep(0.2)


def _family(pid: int) -> list[psutil.Process]:
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal_all(processes: list[psutil.Process], what: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, what)()


def _nobody_writes(airflow: LocalAirflow) -> bool:
    database = sqlite3.connect(airflow.home / "airflow.db", timeout=0, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        database.close()
    return True
