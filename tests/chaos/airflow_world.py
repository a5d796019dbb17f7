"""A whole Airflow with hurried timers, the simulator and the strict S3 server, and the means to harm them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import psutil
import requests

from include.simulator.process import RunningSimulator, running_simulator
from scripts.local_airflow import FINISHED, LocalAirflow, LocalAirflowError
from tests.chaos import oracle
from tests.strict_s3.process import Process as StrictS3

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

DAG = "archive_meeting"
HASTY_DAG = "archive_in_haste"
COPY = "archive_participant"
API_KEY = "canary-api-key-71d0c4ab9e"
STORAGE_SECRET = "canary-storage-secret-5be83f20d1"
BUCKET = "archive"
LONG_AGO = "2026-03-04T09:55:00+00:00"
PROJECT = Path(__file__).resolve().parents[2]

HURRIED = {
    "AIRFLOW__CORE__PARALLELISM": "6",
    "AIRFLOW__CORE__KILLED_TASK_CLEANUP_TIME": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}
"""Faults are noticed in seconds instead of minutes. Nothing of ours is changed, the retry delay neither."""

SPY = """

import os as _os
from pathlib import Path as _Path

from tests.chaos.engine import watch_links as _watch_links

_watch_links(_Path(_os.environ["CHAOS_LINKS"]))
"""
"""Put after a copied Dag file: its tasks note every signed link that they are given, so that it can be searched for."""


class MissedError(Exception):
    """The fault of a schedule did not come about, so the schedule shows nothing."""


@dataclass(frozen=True)
class Meeting:
    """A finished meeting in the simulator.

    :param people: the participants' ids, in the order of the mapped tasks.
    :param owners: whose each part is, in the order in which they are listed.
    """

    bot_id: str
    recording_id: str
    artifact_id: str
    people: list[int]
    owners: list[int]

    def media_path(self, index: int) -> str:
        """Give a regular expression for the requests of one part's body."""
        return rf"^/{self.artifact_id}/{index}-0\?"

    def key(self, participant: int) -> str:
        """Give a regular expression for the objects of one participant."""
        return f"recording={self.recording_id}/participant={participant}/"


@dataclass
class World:
    """Everything that runs, for many schedules at once.

    :param folder: holds all that is left behind.
    :param log_level: of Airflow and all libraries in it.
    """

    folder: Path
    log_level: str = "DEBUG"
    airflow: LocalAirflow = field(init=False)
    recall: RunningSimulator = field(init=False)
    s3: StrictS3 = field(init=False)
    archive: str = field(init=False, default="")
    _resources: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)
    _zombies: list[psutil.Process] = field(init=False, default_factory=list)
    _sessions: set[int] = field(init=False, default_factory=set)
    _counter: int = field(init=False, default=0)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    @classmethod
    def around(cls, airflow: LocalAirflow, recall: RunningSimulator, archive: str) -> World:
        """Make a world of what runs already, and will run on; its shared components must be left alone.

        :param archive: the address that the deployment archives to.
        """
        world = cls(airflow.home)
        world.airflow, world.recall, world.archive = airflow, recall, archive
        return world

    def __enter__(self) -> World:
        with contextlib.ExitStack() as starting:
            self.recall = starting.enter_context(running_simulator("--api-key", API_KEY, "--no-rate-limit"))
            self.s3 = starting.enter_context(StrictS3(bucket=BUCKET, secret_key=STORAGE_SECRET))
            dags = self.folder / "dags"
            dags.mkdir(parents=True)
            for source, name in ((PROJECT / "dags/archive_meeting.py", DAG), (_HASTY, HASTY_DAG)):
                (dags / f"{name}.py").write_text(source.read_text(encoding="utf-8") + SPY, encoding="utf-8")
            self.airflow = starting.enter_context(self._airflow(dags))
            self.airflow.wait_for_dag(DAG)
            self.airflow.wait_for_dag(HASTY_DAG)
            self.airflow.post("/variables", {"key": "recall_archive_uri", "value": "file:///nowhere"})
            self._note_sessions()
            self._resources = starting.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()

    def _airflow(self, dags: Path) -> LocalAirflow:
        return LocalAirflow(self.folder / "home", self._env(), dags=dags, log_level=self.log_level)

    def _env(self) -> dict[str, str]:
        aws = {
            "conn_type": "aws",
            "login": self.s3.access_key,
            "password": STORAGE_SECRET,
            "extra": {"endpoint_url": self.s3.endpoint, "region_name": self.s3.region},
        }
        return {
            **HURRIED,
            "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(self.recall.connection),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws),
            "AIRFLOW_VAR_RECALL_POLL_SECONDS": "1",
            "AIRFLOW_VAR_RECALL_REQUEST_SHARE": "100",
            "CHAOS_LINKS": str(self.links),
        }

    @property
    def links(self) -> Path:
        """The file in which tasks note signed links; not among what is searched for them."""
        return self.folder / "links.txt"

    # -- meetings and runs ------------------------------------------------------------------------------------------

    def use_archive(self, kind: str, number: int) -> None:
        """Point the deployment at a fresh archive.

        :param kind: ``file`` or ``s3``.
        """
        folder = self.folder / "archives" / str(number)
        self.archive = f"s3://{BUCKET}/{number}" if kind == "s3" else folder.as_uri()
        self.ask(lambda: self.airflow.patch("/variables/recall_archive_uri", self._variable()))

    def _variable(self) -> dict[str, str]:
        return {"key": "recall_archive_uri", "value": self.archive}

    def meet(self, rng: random.Random, *, people: int = 2, each: int = 1, sizes: Sequence[int], **more: Any) -> Meeting:
        """Make a meeting in which everyone speaks equally often.

        :param each: parts of one participant.
        :param sizes: bytes of the parts, used in turn.
        :param more: further members of the meeting; it is long over by default.
        """
        ids = [100 + number for number in range(people)]
        owners = [ids[number % people] for number in range(people * each)]
        parts = [
            {
                "participant": {"id": owner, "name": f"Person {owner}"},
                "audio": {"seed": rng.randrange(1, 2**31), "bytes": sizes[number % len(sizes)]},
                "relative": float(number),
            }
            for number, owner in enumerate(owners)
        ]
        made = self.recall.add_meeting(
            **{"created_at": LONG_AGO, **more}, recordings=[{"artifacts": [{"parts": parts}]}]
        )
        recording = made["recordings"][0]
        return Meeting(made["bot_id"], recording["id"], recording["artifacts"][0]["id"], ids, owners)

    def trigger(self, conf: dict[str, Any], run_id: str | None = None, dag: str = DAG) -> str:
        """Start a run, through the REST API."""
        body = {"logical_date": None, "conf": conf, **({"dag_run_id": run_id} if run_id else {})}
        # With SQLite, two requests for the same run at the same moment lock each other out for minutes.
        with self._lock:
            return str(self.ask(lambda: self.airflow.post(f"/dags/{dag}/dagRuns", body))["dag_run_id"])

    def finish(self, run_id: str, dag: str = DAG, timeout: float = 300) -> str:
        """Wait until a run has ended, whatever becomes of the components meanwhile; a run that hangs is an error."""

        def state() -> str | None:
            found = self.ask(lambda: self.airflow.get(f"/dags/{dag}/dagRuns/{run_id}"))["state"]
            return found if found in FINISHED else None

        return self.await_(state, f"the end of {run_id}", timeout)

    def tasks(self, run_id: str, dag: str = DAG) -> list[dict[str, Any]]:
        """List a run's task instances."""
        return self.ask(lambda: self.airflow.task_instances(dag, run_id))

    def running(self, run_id: str, names: Sequence[str], index: int | None = None, dag: str = DAG) -> dict[str, Any]:
        """Wait until one of the tasks runs in a process of its own, and return its task instance.

        :raises MissedError: the run ended before.
        """

        def one() -> dict[str, Any] | None:
            instances = self.tasks(run_id, dag)
            for task in instances:
                if (
                    task["state"] == "running"
                    and task["pid"]
                    and task["task_id"] in names
                    and index in (None, task["map_index"])
                    and psutil.pid_exists(task["pid"])
                ):
                    return task
            if self.ask(lambda: self.airflow.get(f"/dags/{dag}/dagRuns/{run_id}"))["state"] in FINISHED:
                raise MissedError(f"{run_id} ended before one of {list(names)} was seen at work")
            return None

        return self.await_(one, f"one of {list(names)} of {run_id} at work", 180, pause=0.1)

    def code(self, run_id: str, task_id: str, index: int = -1, dag: str = DAG) -> str | None:
        """Return the code with which a task gave up."""
        error = self.ask(lambda: self.airflow.xcom(dag, run_id, task_id, "error", index))
        error = json.loads(error) if isinstance(error, str) else error
        return None if error is None else str(error["code"])

    def clear(self, run_id: str, index: int, *, downstream: bool = False) -> None:
        """Clear one mapped task, as a person would."""
        body = {
            "dry_run": False,
            "only_failed": False,
            "dag_run_id": run_id,
            "task_ids": [[COPY, index]],
            "include_downstream": downstream,
        }
        self.ask(lambda: self.airflow.post(f"/dags/{DAG}/clearTaskInstances", body))

    def mark_failed(self, run_id: str, index: int) -> None:
        """Mark one mapped task as failed, as a person would."""
        path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/{COPY}/{index}"
        self.ask(lambda: self.airflow.patch(path, {"new_state": "failed"}))

    def ask(self, call: Callable[[], T], timeout: float = 150) -> T:
        """Ask Airflow, and go on asking while its API server is away or its database is busy."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return call()
            except (LocalAirflowError, requests.RequestException, json.JSONDecodeError) as error:
                refused = re.search(r"HTTP 4(?!04)", str(error))
                if refused or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def await_(self, condition: Callable[[], T | None], what: str, timeout: float, pause: float = 0.7) -> T:
        """Wait until there is something; what never comes is an error."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:g} s for {what}")
            time.sleep(pause)
        return found

    # -- harm -------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """Give a name for a rule."""
        with self._lock:
            self._counter += 1
            return f"chaos-{self._counter}"

    def spoil(self, origin: str, path: str, action: dict[str, Any], *, times: int | None = 1, **more: Any) -> str:
        """Put a rule in force in the simulator; return its name."""
        name = self.name()
        self.recall.add_faults({"name": name, "origin": origin, "path": path, "times": times, "action": action, **more})
        return name

    def use_up(self, name: str, path: str) -> None:
        """End a rule on a part's body by asking for it until the true answer comes."""
        (rule,) = [one for one in self.recall.control("GET", "/faults")["rules"] if one["name"] == name]
        for _ in range(rule["times"] - rule["applied"]):
            requests.get(f"http://{self.recall.media_host}/{path}?unsigned=1", timeout=10, allow_redirects=False)

    def struck(self, name: str, timeout: float = 120, *, answered: bool = False) -> dict[str, Any]:
        """Wait until a rule of the simulator has struck; return the request.

        :param answered: wait also until the answer is under way.
        """

        def one() -> dict[str, Any] | None:
            for entry in self.recall.journal():
                if entry["fault"] == name and (entry["sent"] or entry["status"] or not answered):
                    return entry
            return None

        try:
            return self.await_(one, f"the rule {name}", timeout, pause=0.3)
        except TimeoutError as error:
            raise MissedError(str(error)) from None

    def hold(self, operation: str, key: str, when: str, *, seconds: float = 40, skip: int = 0) -> None:
        """Let the S3 server hold a request."""
        self.s3.faults(
            {
                "operation": operation,
                "key": key,
                "action": "hold",
                "when": when,
                "seconds": seconds,
                "skip": skip,
                "times": 1,
            }
        )

    def held(self, key: str, timeout: float = 120) -> int:
        """Wait until a request is held; return its number."""

        def one() -> int | None:
            for entry in self.s3.control("GET", "held"):
                if re.search(key, entry["key"]):
                    return int(entry["number"])
            return None

        try:
            return self.await_(one, f"a held request for {key}", timeout, pause=0.1)
        except TimeoutError as error:
            raise MissedError(str(error)) from None

    def release(self, number: int, *, drop: bool) -> None:
        """Let a held request go on, or end its connection."""
        self.s3.control("POST", "release", {"number": number, "drop": drop})

    def kill_task(self, task: dict[str, Any]) -> bool:
        """Kill a task's own process; tell whether it was still there."""
        process = self.ours(task["pid"])
        return process is not None and _kill(process)

    def kill_supervisor(self, task: dict[str, Any]) -> bool:
        """Kill the worker that looks after a task, so that the task lives on without it."""
        process = self.ours(task["pid"])
        if process is None:
            return False
        worker = process.parent()
        if worker is None or worker.pid in self.airflow.pids.values() or self.ours(worker.pid) is None:
            return False
        killed = _kill(worker)
        if killed:
            self._zombies.append(process)
        return killed

    def kill_component(self, name: str) -> None:
        """Kill a component at once; what it started lives on, except for the API server's own workers."""
        self._note_sessions()
        below = psutil.Process(self.airflow.pids[name]).children(recursive=True) if name == "api-server" else []
        self.airflow.kill(name)
        for process in below:
            _kill(process)

    def start_component(self, name: str) -> None:
        """Start a killed component again."""
        self.airflow.start_component(name)
        self._note_sessions()

    def revive(self) -> None:
        """Start whatever component is dead."""
        for name, pid in self.airflow.pids.items():
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                self.start_component(name)
        self.airflow.wait_until_healthy()

    def _note_sessions(self) -> None:
        self._sessions |= set(self.airflow.pids.values())

    def ours(self, pid: int) -> psutil.Process | None:
        """Return the process if it belongs to this Airflow: nothing else is ever killed."""
        try:
            return psutil.Process(pid) if os.getsid(pid) in self._sessions | set(self.airflow.pids.values()) else None
        except (psutil.Error, OSError):
            return None

    # -- what is left -----------------------------------------------------------------------------------------------

    def await_zombies(self, timeout: float = 90) -> None:
        """Wait until every task that lost its worker has ended by itself."""
        _, alive = psutil.wait_procs(self._zombies, timeout=timeout)
        self._zombies.clear()
        assert not alive, f"tasks without a worker still run: {alive}"

    def processes(self) -> list[psutil.Process]:
        """List what is alive of all that this Airflow ever started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) in self._sessions and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def uploads(self, recording_id: str) -> list[str]:
        """List unfinished writes for a recording."""
        return self.view(recording_id).leftovers()

    def objects(self, recording_id: str) -> dict[str, oracle.Stored]:
        """List a recording's objects, each with what a rewrite would change."""
        return self.view(recording_id).objects()

    def view(self, recording_id: str) -> oracle.Archive:
        """Give the archive as if it held one recording only."""
        if self.archive.startswith("s3:"):
            return _BucketOf(recording_id, self.s3.endpoint, BUCKET, self.archive.rpartition("/")[2])
        return _FolderOf(recording_id, Path(unquote(urlsplit(self.archive).path)))

    def check(self, recording_id: str, *, settled: bool = True, missing: int = 0) -> None:
        """Let the oracle judge one recording's part of the archive.

        :param settled: whether there is a manifest.
        :param missing: so many parts are known not to be stored.
        """
        truth = self.recall.control("GET", f"/truth/{recording_id}")
        archive = self.view(recording_id)
        objects = archive.objects()
        outcome = {"state": "success" if settled else "failed", "code": "parts_owed"}
        evidence = oracle.Evidence([truth], [oracle.Finished(0, outcome)], codes=[] if settled else [outcome["code"]])
        # A failed run says by task, in XCom, what it keeps, and not all in one place as the oracle would have it.
        problems = [one for one in oracle.judge(archive, evidence) if settled or one.kind != "unreported"]
        assert not problems, "; ".join(f"{one.kind}: {one.detail}" for one in problems)
        parts = sum("/participant=" in key for key in objects)
        expected = sum(len(artifact["parts"]) for artifact in truth["artifacts"]) - missing
        assert parts == expected, f"{parts} parts are stored, not {expected}"
        assert (len(objects) > parts) == settled, f"there is {'a' if len(objects) > parts else 'no'} manifest"

    def free(self) -> None:
        """Drop the bytes of archives that were checked; their names stay searched by :class:`Secrets` before."""
        shutil.rmtree(self.folder / "archives", ignore_errors=True)
        self.s3.reset()
        self.recall.control("DELETE", "/faults")
        self.recall.control("DELETE", "/journal")


class _FolderOf(oracle.Folder):
    """One recording's part of a folder."""

    def __init__(self, recording_id: str, root: Path) -> None:
        super().__init__(root)
        self._mark = f"recording={recording_id}/"

    def objects(self) -> dict[str, oracle.Stored]:
        return {key: one for key, one in super().objects().items() if self._mark in key}

    def leftovers(self) -> list[str]:
        return [key for key in super().leftovers() if self._mark in key]


class _BucketOf(oracle.Bucket):
    """One recording's part of a bucket."""

    def __init__(self, recording_id: str, *place: str) -> None:
        super().__init__(*place)
        self._mark = f"recording={recording_id}/"

    def _state(self) -> Any:
        state = super()._state()
        return {
            "objects": {key: one for key, one in state["objects"].items() if self._mark in key},
            "uploads": [one for one in state["uploads"] if self._mark in one["key"]],
            "writes": [one for one in state["writes"] if self._mark in one["key"]],
        }


class Secrets:
    """Looks for secrets in all that is left behind, each file once more whenever it has changed.

    :param world: whose remains to search.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[Path, tuple[int, int]] = {}
        self.searched = 0
        self.links = 0

    def hits(self) -> list[str]:
        """Search for the API key, the storage secret and every signature and token that any task was given."""
        tails = self._tails()
        found = []
        for name, data in self._remains():
            self.searched += len(data)
            found += [f"{name}: {needle.decode()}" for needle in _NEEDLES if needle in data]
            found += [f"{name}: {one.group()[:40]!r}" for one in _SIGNED.finditer(data)]
            for run in _RUNS.findall(data):
                pieces = _JOINTS.split(run) if b"%" in run or b"u00" in run else (run,)
                found += [f"{name}: a link's {one[:12]!r}" for one in pieces if one[:HEAD] in tails]
        return found[:20]

    def _tails(self) -> set[bytes]:
        """Return the beginnings of all secret values of all links, as they stand in a link and decoded."""
        links = self._world.links
        values: set[str] = set()
        lines = links.read_text().splitlines() if links.exists() else []
        self.links = len(lines)
        for line in lines:
            query = urlsplit(line).query
            for name, value in parse_qsl(query):
                if name.lower() in ("token", "signature", "x-amz-security-token"):
                    values.add(value)
            values |= {one.partition("=")[2] for one in query.split("&") if one.lower().startswith(("token", "sig"))}
        return {run[:HEAD] for value in values for run in _RUNS.findall(value.encode())}

    def _remains(self) -> Iterator[tuple[str, bytes]]:
        world = self._world
        for root in (world.airflow.home, world.folder / "archives"):
            for path in root.rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    mark = (stat.st_size, stat.st_mtime_ns)
                    if path.is_file() and self._seen.get(path) != mark:
                        self._seen[path] = mark
                        yield str(path), path.read_bytes() + path.name.encode()
        for key, one in world.s3.state()["objects"].items():
            yield key, json.dumps([key, one["metadata"], one["headers"]]).encode()
            if key.endswith(".json"):
                yield key, world.s3.content(key)
        for process in world.processes():
            with contextlib.suppress(psutil.Error):
                yield f"arguments of {process.pid}", " ".join(process.cmdline()).encode()


HEAD = 18
_RUNS = re.compile(rb"[A-Za-z0-9+/_%%.-]{%d,}" % HEAD)
_JOINTS = re.compile(rb"%3D|%26|u003d|u0026")
_NEEDLES = [
    form
    for secret in (API_KEY.encode(), STORAGE_SECRET.encode())
    for form in (secret, base64.b64encode(secret).rstrip(b"="))
]
_SIGNED = re.compile(
    rb"(?:Signature|AWSAccessKeyId|x-amz-security-token)(?:=|%3D)[A-Za-z0-9%/+_-]{4}|[?&]token(?:=|%3D)[A-Za-z0-9]{4}"
)
_HASTY = Path(__file__).with_name("airflow_hasty_dag.py")


def _kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return False
    return True
