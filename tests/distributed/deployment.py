"""A whole Airflow with the CeleryExecutor, each of its components as if it were on a machine of its own."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from scripts.local_airflow import COMPONENTS, DATABASE, LocalAirflow
from tests.chaos.airflow_world import DAG, World
from tests.distributed import machine

if TYPE_CHECKING:
    from tests.distributed.services import Services

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = PROJECT / "deploy" / "celery.env"
WORKERS = ("worker-1", "worker-2")
TRIGGERERS = ("triggerer-1", "triggerer-2")
TRIGGER_CAPACITY = 8

FLEET = {
    **{name: words for name, words in COMPONENTS.items() if name != "triggerer"},
    **dict.fromkeys(TRIGGERERS, COMPONENTS["triggerer"]),
    **{name: ("celery", "worker", "--skip-serve-logs", "--celery-hostname", name) for name in WORKERS},
}

HURRIED = {
    "AIRFLOW__CORE__PARALLELISM": "8",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "8",
    # The slots of the worker that is left are as many as the tasks that may run.
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "8",
    # Fewer than all who wait, so that both triggerers have some.
    "AIRFLOW__TRIGGERER__CAPACITY": str(TRIGGER_CAPACITY),
    # Two more tasks than in the other campaign start at once on the same few cores.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "90",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "40",
    "AIRFLOW__LOGGING__REMOTE_LOGGING": "False",
}
"""Sized for one machine and hurried, so that a loss is noticed in seconds; the shipped values are for real ones."""


def shipped_settings() -> dict[str, str]:
    """Read the environment file of a deployment."""
    lines = (line.strip() for line in SETTINGS.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Fleet(LocalAirflow):
    """Components that share a database, a broker and secrets, and nothing else: each has a home, logs and a temporary
    folder of its own, and a name under which the others know it. Workers can't reach the metadata database.
    """

    def env_of(self, name: str) -> dict[str, str]:
        home = self.home / "machines" / name
        temporary = home / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        env = {
            **super().env_of(name),
            machine.VARIABLE: name,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": f"{machine.__name__}.{machine.name.__name__}",
        }
        if name in WORKERS:
            env[DATABASE] = "postgresql://nobody@127.0.0.1:9/none"
        return env

    def lose(self, name: str) -> None:
        """Kill a machine: the component and all that it started, at once and for good."""
        leader = self.pids[name]
        # Twice, since a process may start another while it is being killed.
        for _ in range(2):
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    if os.getsid(process.pid) == leader:
                        process.send_signal(signal.SIGKILL)
        self._group.processes[name].wait(60)
        self._group.forget(name)


@dataclass
class Deployment(World):
    """The fleet, the simulator and the S3 server.

    :param services: the database and the broker; they are up.
    """

    services: Services = field(kw_only=True)
    airflow: Fleet = field(init=False)

    def _airflow(self, dags: Path) -> Fleet:
        return Fleet(self.folder / "home", self._env(), dags=dags, log_level=self.log_level, components=FLEET)

    def _env(self) -> dict[str, str]:
        ours = {
            DATABASE: self.services.database,
            "AIRFLOW__CELERY__BROKER_URL": self.services.broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": self.services.database.replace("postgresql:", "db+postgresql+psycopg:"),
        }
        # What the local Airflow sets for itself, secrets and addresses, it must not find overwritten.
        own = ("FERNET_KEY", "JWT_SECRET", "SECRET_KEY", "EXECUTION_API_SERVER_URL", "BASE_URL", "ARCHIVE_URI")
        shipped = {name: value for name, value in shipped_settings().items() if not name.endswith(own)}
        return {**shipped, **super()._env(), **HURRIED, **ours}

    def all_tasks(self, state: str | None = None) -> list[dict[str, Any]]:
        """List the task instances of all runs."""
        found: list[dict[str, Any]] = []
        chosen = f"&state={state}" if state else ""

        def page_from(offset: int) -> dict[str, Any]:
            path = f"/dags/{DAG}/dagRuns/~/taskInstances?limit=100&offset={offset}&order_by=id{chosen}"
            return self.ask(lambda: self.airflow.get(path))

        while True:
            page = page_from(len(found))
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def running_on(self, worker: str) -> list[dict[str, Any]]:
        """List what a worker is doing."""
        return [one for one in self.all_tasks("running") if one["hostname"] == worker]

    def waiting_in(self, triggerer: str) -> list[dict[str, Any]]:
        """List what waits in a triggerer."""
        waiting = self.all_tasks("deferred")
        return [one for one in waiting if one["triggerer_job"] and one["triggerer_job"]["hostname"] == triggerer]

    def cpu_seconds(self) -> dict[int, float]:
        """Give the processor time of each living process of the fleet, with its ended children."""
        found = {}
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system + times.children_user + times.children_system
        return found
