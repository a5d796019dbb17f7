"""Archive one meeting on this machine, from nothing: `make run`.

Starts Airflow, and the simulator where no account is given; starts the Dag, shows how it goes, prints what the archive
holds, and stays up until Ctrl-C. Settings come from the environment: see :mod:`scripts.run_settings`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from include.archive.stores import open_store
from include.errors import CodedError
from scripts.local_airflow import LocalAirflow, LocalAirflowError
from scripts.local_simulator import LocalSimulator, LocalSimulatorError
from scripts.processes import ReservedPort
from scripts.report import printable, read_recording, table
from scripts.run_settings import RunSettings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from include.archive.stores import Store

PROJECT = Path(__file__).resolve().parent.parent
RUN = PROJECT / ".run"
DAG_ID = "archive_meeting"
WAIT_TASK, SETTLE_TASK = "wait_for_recordings", "settle"
DEMO_SPEED = 1.5
MOST_LABELS = 20
PATIENCE_SECONDS = 60.0
STARTED = time.monotonic()
PARENT = os.getppid()
TERMINAL = os.isatty(1)
SHOWN_STATES = frozenset({"running", "deferred", "success", "failed", "up_for_retry", "upstream_failed"})
ENDED_STATES = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
ADVICE = {
    "auth_rejected": "Check RECALL_API_KEY, and that RECALL_REGION is the region that the key was made in.",
    "bot_not_found": "Check BOT_ID, and that RECALL_REGION is the bot's region.",
    "recording_not_found": "Check RECORDING_ID, and that RECALL_REGION is the recording's region.",
    "not_configured": "Send the bot with recording_config.audio_separate_raw, as MEETING_URL does.",
    "payment_required": "Recall has stopped the account's billing: see its dashboard.",
    "no_such_bucket": "Check the bucket in ARCHIVE.",
    "storage_denied": "Check ARCHIVE, the AWS credentials, and what they may do there.",
    "content_conflict": "The archive holds other bytes under the same name; nothing was overwritten. Look at both.",
    "parts_owed": "Start it again: what is stored is kept, only the rest is fetched.",
}


class Stopped(BaseException):
    """Somebody wants the command to end."""


def main() -> int:
    """Run the command; the result is the process's exit code."""
    try:
        settings = RunSettings.from_environment(os.environ, PROJECT)
        os.environ.pop("RECALL_API_KEY", None)
        _check_credentials(settings)
        lock = _lock()
    except SettingsError as error:
        print(f"make run: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    code = 130  # what an interrupted command gives
    try:
        with ExitStack() as stack:
            stack.callback(os.close, lock)
            stack.callback(say, "Stopped.")
            run = Run(settings, stack)
            code = run.archive()
            if not settings.once:
                run.stay_up()
            _ignore_signals()
    except (LocalAirflowError, LocalSimulatorError, CodedError, OSError) as error:
        print(f"make run: {error}", file=sys.stderr)
        code = 1
    except Stopped:
        _ignore_signals()
    return code


class Run:
    """One run of the command, from the first process to the table.

    :param settings: what to do.
    :param stack: gets whatever has to end with the command.
    """

    def __init__(self, settings: RunSettings, stack: ExitStack) -> None:
        self.settings = settings
        self.simulator: LocalSimulator | None = None
        env = {"AIRFLOW_VAR_RECALL_ARCHIVE_URI": settings.archive}
        if settings.demo:
            self.simulator = self._start_simulator(stack)
            connection = self.simulator.connection
            # A simulated meeting runs faster than a real one, so it is looked at more often.
            env["AIRFLOW_VAR_RECALL_POLL_SECONDS"] = os.environ.get("AIRFLOW_VAR_RECALL_POLL_SECONDS", "1")
        else:
            connection = {
                "conn_type": "recall",
                "password": settings.api_key,
                "extra": {"region": settings.region},
            }
        env["AIRFLOW_CONN_RECALL_DEFAULT"] = json.dumps(connection)
        env["AIRFLOW_CONN_AWS_DEFAULT"] = os.environ.get("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws"}')
        port = stack.enter_context(ReservedPort(8080))
        # Runs of the demo mean nothing to an account, and the other way round: each has a database of its own.
        home = RUN / ("airflow" if settings.demo else "airflow-account")
        self.airflow = LocalAirflow(home, env, port, logs=RUN / "logs")
        stack.callback(self.airflow.stop)

    def archive(self) -> int:
        """Start Airflow and the Dag, follow it to its end, and print the result.

        :return: exit code: 0 when everything is archived and verified.
        """
        self._start_airflow()
        label = "demo" if self.settings.demo else "manual"
        run_id = f"{label}__{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%fZ}"
        self.airflow.trigger(DAG_ID, self.settings.conf, run_id)
        what = ", ".join(f"{name} {value}" for name, value in self.settings.conf.items())
        step(f"Started {DAG_ID} for {what}")
        state = Progress(self.airflow, run_id).follow(self._check)
        folders = self._settled_folders(run_id)
        verified = self._print_archive(folders)
        if state != "success":
            self._print_failures(run_id)
        self._print_addresses(run_id, folders)
        return 0 if state == "success" and verified else 1

    def stay_up(self) -> None:
        """Keep everything running until somebody stops it or a component ends."""
        say("Airflow stays up. Ctrl-C ends it.")
        while True:
            self._check()
            time.sleep(0.5)

    def _check(self) -> None:
        # Make tells nobody that it was killed, nor that its terminal is gone.
        if os.getppid() != PARENT or (TERMINAL and not os.isatty(1)):
            raise Stopped
        problem = self.airflow.ended() or (self.simulator.ended() if self.simulator else None)
        if problem:
            raise LocalAirflowError(problem)

    def _start_simulator(self, stack: ExitStack) -> LocalSimulator:
        port, media_port = (stack.enter_context(ReservedPort(number)) for number in (9100, 9101))
        simulator = LocalSimulator(
            RUN / "logs" / "simulator.log",
            port=port,
            media_port=media_port,
            arguments=["--speed", str(DEMO_SPEED)],
        )
        stack.callback(simulator.stop)
        simulator.start()
        step(f"No RECALL_API_KEY, so this is the demo. The Recall simulator is on {simulator.url}")
        return simulator

    def _start_airflow(self) -> None:
        step(f"Starting Airflow, logs in {RUN / 'logs'}")
        self.airflow.migrate()
        step("The database is ready")
        self.airflow.start()
        self.airflow.wait_until_healthy()
        step(f"Airflow is up on {self.airflow.url}")
        self.airflow.wait_for_dag(DAG_ID)
        if self.settings.demo:
            self._end_old_runs()

    def _end_old_runs(self) -> None:
        """End what an earlier demo left unfinished: its simulator is gone, and its bots with it."""
        for state in ("running", "queued"):
            for run in self.airflow.get(f"/dags/{DAG_ID}/dagRuns?state={state}&limit=100")["dag_runs"]:
                path = f"/dags/{DAG_ID}/dagRuns/{quote(run['dag_run_id'], safe='')}"
                self.airflow.patch(path, {"state": "failed"})

    def _print_archive(self, folders: list[str]) -> bool:
        """Print the table of each settled recording, and tell whether there is one and all bytes are right."""
        store = _store(self.settings, self.airflow.env) if folders else None
        good = bool(folders)
        for folder in folders:
            if store is None:
                break
            report = read_recording(store, folder)
            gaps = f", {report.missing} parts are gone at the source" if report.missing else ""
            say(f"\n{report.title}: {report.outcome}{gaps}, in {folder}\n\n{table(report.rows)}\n")
            for fault in (fault for row in report.rows for fault in row.faults):
                say(f"NOT VERIFIED: {fault}")
            good = good and report.verified
        return good

    def _settled_folders(self, run_id: str) -> list[str]:
        return [
            self.airflow.xcom(DAG_ID, run_id, SETTLE_TASK, map_index=task["map_index"])["folder"]
            for task in self.airflow.task_instances(DAG_ID, run_id)
            if task["task_id"] == SETTLE_TASK and task["state"] == "success"
        ]

    def _print_failures(self, run_id: str) -> None:
        for task in self.airflow.task_instances(DAG_ID, run_id):
            if task["state"] != "failed":
                continue
            say(f"\nFAILED: {_label(task)}")
            error = _error(self.airflow, run_id, task)
            if error:
                say(f"  {error['code']}: {printable(str(error['message']))}")
                if advice := ADVICE.get(error["code"]):
                    say(f"  {advice}")
            say(f"  Its log: {self._run_url(run_id)}/tasks/{_task_path(task)}")
        say("")

    def _print_addresses(self, run_id: str, folders: list[str]) -> None:
        login = self.airflow.login
        say(f"Airflow   {self.airflow.url}   user {login.user}, password {login.password}")
        say(f"This run  {self._run_url(run_id)}")
        for folder in folders:
            say(f"Listen    {self.airflow.url}/recall/archive/{folder}/")
        say(f"Archive   {self.settings.archive}")

    def _run_url(self, run_id: str) -> str:
        return f"{self.airflow.url}/dags/{DAG_ID}/runs/{quote(run_id, safe='')}"


class Progress:
    """Shows a run while it goes on: one line for each thing that changes.

    :param airflow: where it runs.
    :param run_id: the run.
    """

    def __init__(self, airflow: LocalAirflow, run_id: str) -> None:
        self._airflow = airflow
        self._run_id = run_id
        self._states: dict[tuple[str, int], str] = {}
        self._bot_status: Any = None

    def follow(self, check: Any) -> str:
        """Show the run until it has ended.

        :param check: called at every look; raises when going on makes no sense.
        :return: the run's last state.
        """
        heard = time.monotonic()
        while True:
            try:
                state = str(self._airflow.get(f"/dags/{DAG_ID}/dagRuns/{quote(self._run_id, safe='')}")["state"])
                self._look()
                heard = time.monotonic()
                if state in ("success", "failed"):
                    return state
            except LocalAirflowError:
                # A busy machine may leave a request waiting; the run itself goes on.
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    raise
            check()
            time.sleep(0.5)

    def _look(self) -> None:
        tasks = self._airflow.task_instances(DAG_ID, self._run_id)
        for task in sorted(tasks, key=lambda one: one["end_date"] or one["start_date"] or ""):
            key, state = (task["task_id"], task["map_index"]), task["state"] or ""
            if task["task_id"] == WAIT_TASK and state in ("running", "deferred", "success"):
                self._show_bot_status()
            if self._states.get(key) == state:
                continue
            self._states[key] = state
            mapped = [one for one in tasks if one["task_id"] == task["task_id"] and one["map_index"] >= 0]
            if state in SHOWN_STATES and (len(mapped) <= MOST_LABELS or state == "failed"):
                step(f"{_label(task)}: {self._describe(task)}")
            elif state in ENDED_STATES and mapped:
                ended = sum(one["state"] in ENDED_STATES for one in mapped)
                step(f"{task['task_id']}: {ended} of {len(mapped)} ended")

    def _describe(self, task: Mapping[str, Any]) -> str:
        state = str(task["state"]).replace("_", " ")
        if task["state"] not in ("up_for_retry", "failed"):
            return state
        error = _error(self._airflow, self._run_id, task)
        return f"{state} ({error['code']}: {printable(str(error['message']))})" if error else state

    def _show_bot_status(self) -> None:
        status = self._airflow.xcom(DAG_ID, self._run_id, WAIT_TASK, "bot_status")
        if status and status != self._bot_status:
            self._bot_status = status
            step(f"The bot: {printable(str(status)).replace('_', ' ')}")


def step(line: str) -> None:
    """Print one step of the run with the seconds since the command started."""
    say(f"[{time.monotonic() - STARTED:3.0f} s] {line}")


def say(line: str) -> None:
    """Print a line at once.

    :raises Stopped: nobody reads any more.
    """
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise Stopped from None


def _label(task: Mapping[str, Any]) -> str:
    if task["map_index"] < 0:
        return str(task["task_id"])
    return f"{task['task_id']} [{printable(task['rendered_map_index'] or str(task['map_index']))}]"


def _task_path(task: Mapping[str, Any]) -> str:
    return f"{task['task_id']}/mapped/{task['map_index']}" if task["map_index"] >= 0 else str(task["task_id"])


def _error(airflow: LocalAirflow, run_id: str, task: Mapping[str, Any]) -> dict[str, Any] | None:
    value = airflow.xcom(DAG_ID, run_id, task["task_id"], "error", task["map_index"])
    return value if isinstance(value, dict) and "code" in value else None


def _store(settings: RunSettings, env: Mapping[str, str]) -> Store:
    """Open the archive with the credentials that the tasks used."""

    def s3_client() -> Any:
        os.environ.update({name: value for name, value in env.items() if name.startswith("AIRFLOW")})
        os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "WARNING"
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        return S3Hook(aws_conn_id="aws_default").get_conn()

    return open_store(settings.archive, s3_client=s3_client)


def _check_credentials(settings: RunSettings) -> None:
    if settings.uses_s3 and not os.environ.get("AIRFLOW_CONN_AWS_DEFAULT"):
        import boto3

        if boto3.Session().get_credentials() is None:
            raise SettingsError(
                "ARCHIVE is on S3 and there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE"
            )


def _lock() -> int:
    """Take this folder for one run at a time; the lock goes with the process, however it ends."""
    RUN.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(RUN / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 20).decode() or "unknown"
        raise SettingsError(f"already running in this folder (process {owner}); stop that one first") from None
    os.truncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def _stop(number: int, frame: object) -> None:
    _ignore_signals()
    raise Stopped


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
