"""A whole Airflow on this machine: the components that `airflow standalone` starts, each with a log of its own."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from scripts.processes import LOOPBACK, ProcessGroup, unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROJECT = Path(__file__).resolve().parent.parent
# The API server takes longest to start, so it goes first. The log servers of the other two are left out: all components
# share one folder, and two Airflows on one machine would fight over the ports.
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    "dag-processor": ("dag-processor",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
SWEEP_SCHEDULE = "AIRFLOW_VAR_RECALL_SWEEP_SCHEDULE"
BUSY_ATTEMPTS = 20
FINISHED = frozenset({"success", "failed"})


class LocalAirflowError(RuntimeError):
    """Airflow did not start, ended by itself, or refused a request."""


@dataclass(frozen=True)
class Login:
    """Who may sign in to the UI and the API."""

    user: str
    password: str = field(repr=False)


class LocalAirflow:
    """Airflow with SQLite and the LocalExecutor in a folder of its own; `env` may name another database and executor.

    Use it as a context manager: entering starts all components and waits until they are healthy; leaving ends them with
    everything that they started. They also end when this process dies.

    :param home: AIRFLOW_HOME; made when missing, kept afterwards. Holds the database, task logs, and the secrets.
    :param env: environment variables on top of this class's settings: connections, Variables, `AIRFLOW__…`.
    :param port: port of the API server. Default: any unused one.
    :param dags: folder of the Dags. Default: the project's.
    :param logs: folder of the components' logs. Default: `components` in home.
    :param log_level: Airflow's log level. Default INFO.
    :param components: what to start: a name for each, and the arguments of the airflow command. Default: `COMPONENTS`.
    """

    def __init__(
        self,
        home: Path,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        *,
        dags: Path = PROJECT / "dags",
        logs: Path | None = None,
        log_level: str = "INFO",
        components: Mapping[str, tuple[str, ...]] = COMPONENTS,
    ) -> None:
        self.home = home.resolve()
        self.components = components
        self.logs = (logs or self.home / "components").resolve()
        self.port = port or unused_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._group = ProcessGroup()
        self._session = requests.Session()
        self._session.trust_env = False
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.login, secret = self._secrets()
        self.env = {**_inherited(), **self._settings(secret, dags.resolve(), log_level), **(env or {})}

    def __enter__(self) -> LocalAirflow:
        try:
            self.start()
            self.wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each component."""
        return {name: process.pid for name, process in self._group.processes.items()}

    def start(self) -> None:
        """Prepare the database and start all components, without waiting for them."""
        self.migrate()
        for name in self.components:
            self.start_component(name)

    def start_component(self, name: str) -> int:
        """Start one component, for example again after it was killed.

        :param name: one of its components.
        :return: its process id.
        """
        command = [sys.executable, "-m", "airflow", *self.components[name]]
        env = self.env_of(name)
        return self._group.start(name, command, env=env, cwd=self.home, log=self.logs / f"{name}.log").pid

    def env_of(self, name: str) -> dict[str, str]:
        """Give the environment of one component.

        :param name: one of its components.
        """
        env = dict(self.env)
        if name == "api-server":
            # It writes its audit log on the event loop, which a request needs that has the turn and is about to end.
            env[DATABASE] = env[DATABASE].replace("timeout=60", "timeout=3")
        return env

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one component and wait until it is gone.

        :param name: one of its components.
        :param number: the signal. Default SIGKILL.
        """
        process = self._group.processes[name]
        process.send_signal(number)
        process.wait(timeout=60)

    def stop(self) -> None:
        """End all components and everything that they started."""
        self._group.stop()
        self._session.close()

    def ended(self) -> str | None:
        """Say which component ended by itself, and where its log is; None while all run."""
        for name, process in self._group.processes.items():
            if (code := process.poll()) is not None:
                return f"Airflow's {name} ended with code {code}: see {self.logs / f'{name}.log'}"
        return None

    def wait_until_healthy(self, timeout: float = 300, progress: Callable[[str], None] | None = None) -> None:
        """Wait until the API answers and every component has reported to the database.

        :param timeout: seconds.
        :param progress: called with the name of each component as it becomes healthy.
        :raises LocalAirflowError: a component ended, or not all were healthy in time.
        """
        seen: set[str] = set()

        def healthy() -> bool:
            try:
                report = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
            except (requests.RequestException, ValueError):
                return False
            for name in ("scheduler", "dag_processor", "triggerer"):
                if report[name]["status"] == "healthy" and name not in seen:
                    seen.add(name)
                    if progress:
                        progress(name.replace("_", " "))
            return len(seen) == 3

        self._wait_for(healthy, "Airflow to be healthy", timeout)
        # The API that tasks talk to is built at its first request, in longer than a task waits for an answer.
        self._session.get(f"{self.url}/execution/health", timeout=timeout).raise_for_status()

    def wait_for_dag(self, dag_id: str, timeout: float = 300) -> None:
        """Wait until a Dag has been parsed, and switch it on.

        :param dag_id: the Dag.
        :param timeout: seconds.
        :raises LocalAirflowError: the Dag's file cannot be imported, or it did not appear in time.
        """

        def parsed() -> bool:
            if self._request("GET", f"/dags/{dag_id}", accept=(200, 404)).status_code == 200:
                return True
            for error in self.get("/importErrors")["import_errors"]:
                reason = error["stack_trace"].strip().splitlines()[-1]
                raise LocalAirflowError(f"{error['filename']} cannot be imported: {reason}")
            return False

        self._wait_for(parsed, f"the Dag {dag_id}", timeout)
        self._request("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run through the REST API, waiting first until the Dag is there.

        :param dag_id: the Dag.
        :param conf: the run's params.
        :param run_id: id of the run. Default: Airflow's own.
        :return: id of the run.
        :raises LocalAirflowError: Airflow refused it; the message holds the status and the reason.
        """
        self.wait_for_dag(dag_id)
        body = {"logical_date": None, "conf": dict(conf or {}), **({"dag_run_id": run_id} if run_id else {})}
        return str(self._request("POST", f"/dags/{dag_id}/dagRuns", body).json()["dag_run_id"])

    def wait(self, dag_id: str, run_id: str, timeout: float = 600) -> dict[str, Any]:
        """Wait until a run has ended.

        :param dag_id: the Dag.
        :param run_id: the run.
        :param timeout: seconds.
        :return: the run as the API gives it; `state` is `success` or `failed`.
        :raises LocalAirflowError: it did not end in time, or a component ended.
        """
        run: dict[str, Any] = {}

        def done() -> bool:
            run.update(self.get(f"/dags/{dag_id}/dagRuns/{run_id}"))
            return run["state"] in FINISHED

        self._wait_for(done, f"the run {run_id} of {dag_id}", timeout)
        return run

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """List all task instances of a run, the mapped ones too."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(f"{path}?limit=100&offset={len(found)}")
            found.extend(page["task_instances"])
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Give the value that a task pushed, or None where there is none."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        reply = self._request("GET", f"{path}?map_index={map_index}&deserialize=false", accept=(200, 404))
        return reply.json()["value"] if reply.status_code == 200 else None

    def get(self, path: str) -> dict[str, Any]:
        """Read from the public REST API.

        :param path: what follows `/api/v2`, for example `/dags`.
        :raises LocalAirflowError: the reply is not a success.
        """
        reply: dict[str, Any] = self._request("GET", path).json()
        return reply

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make something through the public REST API; the counterpart of :meth:`get`."""
        reply: dict[str, Any] = self._request("POST", path, body).json()
        return reply

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change something through the public REST API; the counterpart of :meth:`get`."""
        reply: dict[str, Any] = self._request("PATCH", path, body).json()
        return reply

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, accept: tuple[int, ...] = (200, 201)
    ) -> requests.Response:
        url = f"{self.url}/api/v2{path}"
        try:
            if "Authorization" not in self._session.headers:
                self._sign_in()
            for _ in range(BUSY_ATTEMPTS):
                reply = self._session.request(method, url, json=body, timeout=120)
                if reply.status_code == 401:
                    self._sign_in()
                elif reply.status_code == 500 and "Database error" in reply.text:
                    # SQLite was busy; the server notes a request before it acts on it, so nothing was done yet.
                    time.sleep(0.5)
                else:
                    break
        except requests.RequestException as error:
            raise LocalAirflowError(f"{method} {url}: {type(error).__name__}") from error
        if reply.status_code not in accept:
            raise LocalAirflowError(f"{method} {path}: HTTP {reply.status_code}: {reply.text[:1000]}")
        return reply

    def _sign_in(self) -> None:
        login = {"username": self.login.user, "password": self.login.password}
        reply = self._session.post(f"{self.url}/auth/token", json=login, timeout=120)
        reply.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {reply.json()['access_token']}"

    def _wait_for(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if problem := self.ended():
                raise LocalAirflowError(problem)
            if time.monotonic() > deadline:
                raise LocalAirflowError(f"waited {timeout:g} s for {what}: see the logs in {self.logs}")
            time.sleep(0.25)

    def migrate(self) -> None:
        """Create or upgrade the database; skipped where this version of Airflow has done it before."""
        stamp = self.home / "database-version"
        current = version("apache-airflow")
        database = self.home / "airflow.db"
        if database.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == current:
            return
        log = self.logs / "migrate.log"
        command = [sys.executable, "-m", "airflow", "db", "migrate"]
        process = self._group.start("migrate", command, env=self.env, cwd=self.home, log=log)
        try:
            code = process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            raise LocalAirflowError(f"the database was not ready after 300 s: see {log}") from None
        if code:
            raise LocalAirflowError(f"the database could not be prepared: see {log}")
        self._group.forget("migrate")
        stamp.write_text(current, encoding="utf-8")

    def _secrets(self) -> tuple[Login, dict[str, str]]:
        path = self.home / "secrets.json"
        try:
            secret: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            secret = {
                "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "jwt_secret": secrets.token_urlsafe(64),
                "api_secret_key": secrets.token_urlsafe(32),
                "admin_password": secrets.token_urlsafe(12),
            }
            _write_private(path, json.dumps(secret))
        login = Login("admin", secret["admin_password"])
        _write_private(self.home / "passwords.json", json.dumps({login.user: login.password}))
        return login, secret

    def _settings(self, secret: Mapping[str, str], dags: Path, log_level: str) -> dict[str, str]:
        return {
            "AIRFLOW_HOME": str(self.home),
            "PYTHONPATH": str(PROJECT),
            # Tasks and the API talk over the loopback: never through a proxy.
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), LOOPBACK, "localhost"])),
            "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy"), LOOPBACK, "localhost"])),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__CORE__FERNET_KEY": secret["fernet_key"],
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.login.user}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secret["api_secret_key"],
            "AIRFLOW__API_AUTH__JWT_SECRET": secret["jwt_secret"],
            # One writer at a time: on a busy machine a turn can take longer than SQLite's own five seconds.
            DATABASE: f"sqlite:///{self.home / 'airflow.db'}?timeout=60",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": log_level,
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            # Whoever starts an Airflow for one meeting doesn't ask for the whole workspace.
            SWEEP_SCHEDULE: os.environ.get(SWEEP_SCHEDULE, "off"),
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        }


def _inherited() -> dict[str, str]:
    """Take over the caller's environment without the settings of another Airflow; connections and Variables stay."""
    keep = ("AIRFLOW_CONN_", "AIRFLOW_VAR_")
    return {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW_") or k.startswith(keep)}


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
