"""What Airflow itself costs a run: `python -m bench.airflow_share`.

Airflow's database is a private PostgreSQL where the machine has one and this interpreter's environment a driver for it
(that of `make test-distributed` has), and SQLite elsewhere. With `--profile`, where the time of mapped tasks goes is
shown too; that needs py-spy and the right to trace processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.ends import PROJECT
from bench.measure import descendants, pss
from bench.report import BATCHED
from bench.results import keep
from include.simulator.process import running_simulator
from scripts.local_airflow import DATABASE, LocalAirflow
from scripts.postgres import Postgres, programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from include.simulator.process import RunningSimulator

ARCHIVE, EMPTY, BARE = "archive_meeting", "empty", "bare"
TASKS = 32
"""Participants of the runs that a task's own cost is taken from: each has a mapped task of its own."""

ROUNDS = 5
"""How often a task's own cost is taken, by turns with that of the others."""

TINY, SMALL, LARGE = 1000, 2**20, 64 * 2**20
"""Bytes of a participant's part."""

POSTGRES, SQLITE = "PostgreSQL", "SQLite"

PARALLELISM = {POSTGRES: 32, SQLITE: 8}
"""Tasks at once; more than a few wait for each other to write to SQLite."""

DEPLOYMENT = {
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "32",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    # Airflow may notice only after the first of these that a task's process has ended, see docs/scaling.md.
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "15",
}
TASK_TITLE = b"airflow worker -- "
"""What a task's process is called; its executor's has more words."""

EMPTY_DAG = """
from airflow.sdk import dag, task


@dag(schedule=None, params={"count": 1}, max_active_runs=100)
def empty():
    @task
    def count(params):
        return list(range(params["count"]))

    @task
    def nothing(number):
        pass

    nothing.expand(number=count())


empty()
"""
BARE_DAG = """
from airflow.sdk import DAG, BaseOperator


class Count(BaseOperator):
    def execute(self, context):
        return list(range(context["params"]["count"]))


class Nothing(BaseOperator):
    template_fields = ("number",)

    def __init__(self, *, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def execute(self, context):
        pass


with DAG("bare", schedule=None, params={"count": 1}, max_active_runs=100):
    Nothing.partial(task_id="nothing").expand(number=Count(task_id="count").output)
"""
"""The same without ``@task``, whose import each task's process pays for."""

_TASK, _IMPORT = "airflow/sdk/execution_time/task_runner.py", "importlib._bootstrap"
# A stack is of the first kind whose words it has all. A task's process is a fork, with its supervisor in its stack.
KINDS = {
    "importing what the operator needs": ("provider/operators.py", _IMPORT),
    "the operator's own work": ("provider/operators.py",),
    "parsing the Dag file": (f"parse ({_TASK}",),
    "other imports of the task's process": (_TASK, _IMPORT),
    "the rest of the task's process": (_TASK,),
    "supervising the task, talking to Airflow's API server": ("supervisor.py",),
}


def cpu(pids: list[int]) -> float:
    """Return the CPU seconds of some processes and all that they started, the ended ones included."""
    total = 0
    for pid in {one for top in pids for one in (top, *descendants(top))}:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))  # its own and that of the children it has waited for, user and system
    return total / os.sysconf("SC_CLK_TCK")


class Watch:
    """Looks at the memory of tasks' processes while a block runs.

    :param top: the process that they are below.
    :ivar peak: bytes, the most that one was seen to have by proportional share.
    :ivar resident: bytes, the most that was ever resident in one, what it shares with others included.
    """

    def __init__(self, top: int) -> None:
        self.peak = self.resident = 0
        self._top = top
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            for pid in descendants(self._top):
                try:
                    title = Path(f"/proc/{pid}/cmdline").read_bytes()
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue  # it has just ended
                if title.startswith(TASK_TITLE) and len(title.rstrip(b"\0").split()) == 4 and "VmHWM:" in status:
                    self.peak = max(self.peak, pss(pid))
                    self.resident = max(self.resident, 1024 * int(status.split("VmHWM:")[1].split()[0]))


class Bench:
    """A running Airflow whose runs are measured.

    :param others: processes whose work is Airflow's too: its database.
    """

    def __init__(self, airflow: LocalAirflow, simulator: RunningSimulator, others: list[int]) -> None:
        self._airflow = airflow
        self._simulator = simulator
        self._others = others
        self.idle = 0.0

    def settle_down(self, seconds: float = 10) -> None:
        """Learn what Airflow burns when nothing runs."""
        before = cpu(self._pids())
        time.sleep(seconds)
        self.idle = (cpu(self._pids()) - before) / seconds

    def archive(self, participants: int, size: int) -> dict[str, Any]:
        """Archive a recording of so many participants, each with one part."""
        parts = [
            {"participant": {"id": number, "name": f"Person {number}"}, "audio": {"seed": number, "bytes": size}}
            for number in range(1, participants + 1)
        ]
        meeting = self._simulator.add_meeting(
            created_at="2026-03-04T09:55:00+00:00", recordings=[{"artifacts": [{"parts": parts}]}]
        )
        return self._run(ARCHIVE, {"recording_id": meeting["recordings"][0]["id"]}, "archive_participant")

    def empty(self, tasks: int, dag: str = EMPTY) -> dict[str, Any]:
        """Run so many mapped tasks that do nothing."""
        return self._run(dag, {"count": tasks}, "nothing")

    def task_costs(self) -> dict[str, float]:
        """Return the CPU seconds of one more mapped task of each kind."""
        kinds: dict[str, Callable[[int], dict[str, Any]]] = {
            "empty_task_cpu": self.empty,
            "bare_task_cpu": lambda tasks: self.empty(tasks, BARE),
            "tiny_task_cpu": lambda tasks: self.archive(tasks, TINY),
            "task_cpu": lambda tasks: self.archive(tasks, SMALL),
        }
        rounds = [{name: slope(run(2), run(TASKS)) for name, run in kinds.items()} for _ in range(ROUNDS)]
        return {name: median(one[name] for one in rounds) for name in kinds}

    def task_memory(self) -> dict[str, dict[str, int]]:
        """Return how large the process of an empty task becomes, and of one that archives a large part."""
        found = {}
        for name, run in {"empty": lambda: self.empty(4), "archive": lambda: self.archive(4, LARGE)}.items():
            with Watch(self._airflow.pids["scheduler"]) as watch:
                run()
            found[name] = {"peak": watch.peak, "resident": watch.resident}
        return found

    def _run(self, dag: str, conf: dict[str, Any], mapped: str) -> dict[str, Any]:
        self._airflow.wait_for_dag(dag)
        before, source_before, began = cpu(self._pids()), cpu([self._simulator.pid]), time.monotonic()
        run_id = self._airflow.trigger(dag, conf)
        ended = self._airflow.wait(dag, run_id, timeout=900)
        time.sleep(2)  # the last task's process has been waited for by then
        spent = cpu(self._pids()) - before - self.idle * (time.monotonic() - began)
        source = cpu([self._simulator.pid]) - source_before
        if ended["state"] != "success":
            raise SystemExit(f"{dag} {conf}: {ended['state']}")
        queued, end = (datetime.fromisoformat(ended[name].replace("Z", "+00:00")) for name in ("queued_at", "end_date"))
        wall = (end - queued).total_seconds()
        tasks = [one for one in self._airflow.task_instances(dag, run_id) if one["task_id"] == mapped]
        found = {"wall": wall, "cpu": spent, "source_cpu": source, "tasks": len(tasks)}
        print(f"{dag:16} {conf} {wall:6.1f} s, {spent:6.1f} CPU s, {len(tasks)} mapped tasks", flush=True)
        return found

    def _pids(self) -> list[int]:
        return [*self._airflow.pids.values(), *self._others]


@contextmanager
def started(folder: Path) -> Iterator[tuple[Bench, LocalAirflow]]:
    """Start Airflow, with the project's Dag and an empty one, and the simulator."""
    dags = folder / "dags"
    dags.mkdir()
    shutil.copy(PROJECT / "dags" / f"{ARCHIVE}.py", dags)
    (dags / f"{EMPTY}.py").write_text(EMPTY_DAG)
    (dags / f"{BARE}.py").write_text(BARE_DAG)
    with ExitStack() as stack:
        simulator = stack.enter_context(running_simulator("--no-rate-limit", "--page-size", "100"))
        env = {
            **DEPLOYMENT,
            "AIRFLOW__CORE__PARALLELISM": str(PARALLELISM[database()]),
            "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(simulator.connection),
            "AIRFLOW_VAR_RECALL_ARCHIVE_URI": (folder / "archive").as_uri(),
            "AIRFLOW_VAR_RECALL_POLL_SECONDS": "1",
        }
        others: list[int] = []
        if database() == POSTGRES:
            postgres = stack.enter_context(Postgres(folder / "postgres"))
            env[DATABASE] = postgres.url
            others.append(postgres.pid)
        airflow = stack.enter_context(LocalAirflow(folder / "airflow", env, dags=dags))
        bench = Bench(airflow, simulator, others)
        airflow.wait_for_dag(ARCHIVE)
        bench.empty(TASKS)  # what only a process's first task pays
        bench.archive(TASKS, TINY)
        bench.settle_down()
        yield bench, airflow


def database() -> str:
    """Return the kind of database that Airflow gets here."""
    return POSTGRES if programs() and find_spec("psycopg") else SQLITE


def slope(few: dict[str, Any], many: dict[str, Any]) -> float:
    """Return the CPU seconds of one more mapped task."""
    return float((many["cpu"] - few["cpu"]) / (many["tasks"] - few["tasks"]))


def parse_over_bare(folder: Path, times: int = 7) -> float:
    """Return the CPU seconds that parsing the Dag file takes more than parsing one without our imports."""
    bare = folder / "bare.py"
    bare.write_text("from airflow.sdk import DAG\n\nDAG('bare')\n")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "AIRFLOW_HOME": str(folder / "airflow")}
    program = (
        "import runpy, sys, time, airflow.sdk\n"
        "before = time.process_time()\n"
        "runpy.run_path(sys.argv[1])\n"
        "print(time.process_time() - before)"
    )

    def cost(path: Path) -> float:
        command = [sys.executable, "-c", program, str(path)]
        return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()[-1])

    pairs = [(cost(PROJECT / "dags" / f"{ARCHIVE}.py"), cost(bare)) for _ in range(times)]
    return median(ours - theirs for ours, theirs in pairs)


def profile(bench: Bench, airflow: LocalAirflow, folder: Path) -> dict[str, float]:
    """Return the share of each kind of work in the CPU time of the tasks' processes, nothing if it can't be seen."""
    output = folder / "stacks"
    spy = [str(PROJECT / ".venv-bench" / "bin" / "py-spy"), "record", "--subprocesses", "--format", "raw"]
    where = ["--rate", "200", "--output", str(output), "--pid", str(airflow.pids["scheduler"])]
    with subprocess.Popen([*spy, *where], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(2)
        bench.archive(TASKS, 1000)
        process.send_signal(signal.SIGINT)
    if not output.exists():
        print("py-spy may not trace processes here, so nothing is said about where the time goes")
        return {}
    counts: Counter[str] = Counter()
    for line in output.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        kind = next((kind for kind, words in KINDS.items() if all(word in stack for word in words)), None)
        if kind:
            counts[kind] += int(count)
    total = counts.total() or 1
    return {kind: counts[kind] / total for kind in KINDS}


def main() -> None:
    """Measure, and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.airflow_share", description=__doc__)
    parser.add_argument("--participants", type=int, nargs="*", default=[1, 10, 100, 200, 1000], help="runs of so many")
    parser.add_argument("--profile", action="store_true", help="show where the time of mapped tasks goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with started(folder) as (bench, airflow):
            found: dict[str, Any] = {
                "database": database(),
                "parallelism": PARALLELISM[database()],
                **bench.task_costs(),
                "idle_cpu": bench.idle,
                "memory": bench.task_memory(),
                "runs": {str(count): bench.archive(count, SMALL) for count in options.participants},
                "tiny_runs": {
                    str(count): bench.archive(count, TINY) for count in options.participants if count > BATCHED
                },
            }
            if options.profile and (shares := profile(bench, airflow, folder)):
                found["profile"] = shares
        found["parse_over_bare"] = parse_over_bare(folder)
    print(json.dumps({name: value for name, value in found.items() if "runs" not in name}, indent=1))
    keep({"airflow": found})


if __name__ == "__main__":
    main()
