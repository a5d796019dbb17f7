"""Archive many meetings with several workers and triggerers, lose one of each midway, and judge what is left.

``python -m tests.distributed.campaign`` starts PostgreSQL, Redis, and Airflow with the CeleryExecutor on the settings
of ``deploy/celery.env``: an API server, a scheduler, a Dag processor, two workers and two triggerers. The worker and
the triggerer that are lost stay lost, where a deployment would start new ones: the rest has to finish the work alone.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.local_airflow import FINISHED
from tests.chaos import oracle
from tests.chaos.airflow_world import BUCKET, COPY, DAG, LONG_AGO, Meeting, Secrets
from tests.distributed.deployment import TRIGGERERS, WORKERS, Deployment
from tests.distributed.services import Services, require

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB = 1 << 20
SIZES = (60_000, 30_001, 400_000, 9 * MIB, 0x10000)
IN_CALL = 0.25
"""So many of the meetings are still in the call when the runs start."""

COPY_SECONDS = 6
"""So long the first copy of every second meeting takes: long enough to be caught at work."""

TIMEOUT = 1200.0
"""Seconds to wait for all runs at most; where nothing else runs, it takes five minutes."""

VERDICTS = ("lost", "duplicate", "corrupt", "phantom", "leftover", "overwritten", "secret", "manifest", "key")


@dataclass
class Report:
    """What is printed at the end, and whether all is well."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def say(self, name: str, value: object) -> None:
        self.rows.append((name, str(value)))
        print(f"{name:34}{value}", flush=True)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)
            print(f"PROBLEM: {problem}", flush=True)


class Campaign:
    """One run of all meetings.

    :param world: where they run.
    :param meetings: how many.
    :param call_seconds: how long those last that are still in the call.
    """

    def __init__(self, world: Deployment, meetings: int, call_seconds: float) -> None:
        self.world = world
        self.report = Report()
        self._rng = random.Random(20_261_123)
        self._count = meetings
        self._call_seconds = call_seconds
        self._began = time.monotonic()
        self._runs: dict[str, Meeting] = {}
        self._caught: set[tuple[str, str, int]] = set()

    @property
    def clock(self) -> float:
        """Seconds since the first run was triggered."""
        return time.monotonic() - self._began

    def run(self, *, kill: bool) -> None:
        """Trigger all, harm, wait for all, judge."""
        cpu = self.world.cpu_seconds()
        self._trigger()
        if kill:
            self._harm()
        states = self._wait()
        self.report.say("seconds to the last recording", f"{self.clock:.0f}")
        used = sum(after - cpu.get(pid, 0.0) for pid, after in self.world.cpu_seconds().items())
        self.report.say("of them, processor (what survived)", f"{used:.0f}")
        self.report.say("runs", ", ".join(f"{count} {state}" for state, count in states.items()))
        self.report.expect(states == {"success": self._count}, f"not every run succeeded: {dict(states)}")
        self._tasks()
        self._requests()
        self._judge("success" if set(states) == {"success"} else "unfinished")

    def _trigger(self) -> None:
        self.world.use_archive("s3", 1)
        live = int(self._count * IN_CALL)
        for number in range(self._count):
            more: dict[str, Any] = {"created_at": LONG_AGO}
            if number < live:
                more = {"live": True, "created_at": None, "timeline": self._timeline()}
            people = self._rng.randint(2, 5)
            sizes = self._rng.sample(SIZES, len(SIZES))
            meeting = self.world.meet(self._rng, people=people, each=self._rng.randint(1, 2), sizes=sizes, **more)
            if number % 2:
                rate = sizes[0] // COPY_SECONDS
                self.world.spoil("media", f"^/{meeting.artifact_id}/0-", {"rate": rate}, times=None)
            if not self._runs:
                self._began = time.monotonic()
            self._runs[self.world.trigger({"bot_id": meeting.bot_id})] = meeting
        self.report.say("meetings", f"{self._count}, {live} of them still in the call")
        self.report.say("seconds to trigger them", f"{self.clock:.1f}")

    def _timeline(self) -> list[dict[str, Any]]:
        end = self._call_seconds
        return [
            {"at": 0, "code": "joining_call"},
            {"at": 1, "code": "in_call_recording"},
            {"at": end, "code": "call_ended", "sub_code": "call_ended_by_host"},
            {"at": end + 1, "code": "done"},
        ]

    def _harm(self) -> None:
        """Lose the triggerer that looks after most, and a worker in the middle of a copy."""
        world = self.world
        world.await_(lambda: all(len(world.waiting_in(one)) > 2 for one in TRIGGERERS), "waits in each triggerer", 120)
        triggerer = max(TRIGGERERS, key=lambda one: len(world.waiting_in(one)))
        waits = len(world.waiting_in(triggerer))
        world.airflow.lose(triggerer)
        self.report.say(f"{triggerer} lost", f"at {self.clock:.0f} s, with {waits} waits")

        def at_work() -> list[dict[str, Any]]:
            if len(world.s3.state()["objects"]) < self._count:
                return []
            found = world.running_on(WORKERS[1])
            return found if any(one["task_id"] == COPY for one in found) else []

        world.await_(at_work, f"{WORKERS[1]} to copy when some copies are done", 300, pause=0.2)
        world.airflow.lose(WORKERS[1])
        time.sleep(1)
        # What the dead worker is still said to do; a task that ended in the last moment needs no second try.
        busy = world.running_on(WORKERS[1])
        self._caught = {_name(one) for one in busy}
        copies = sum(one["task_id"] == COPY for one in busy)
        self.report.say(f"{WORKERS[1]} lost", f"at {self.clock:.0f} s, with {len(busy)} tasks, {copies} of them copies")
        self.report.say("runs ended by then", len(self._look()))

    def _look(self) -> dict[str, str]:
        """Return the state of each run that has ended."""
        page = self.world.ask(lambda: self.world.airflow.get(f"/dags/{DAG}/dagRuns?limit=100"))
        return {one["dag_run_id"]: one["state"] for one in page["dag_runs"] if one["state"] in FINISHED}

    def _wait(self) -> Counter[str]:
        def done() -> bool:
            return self.world.airflow.ended() is not None or len(self._look()) == self._count

        with contextlib.suppress(TimeoutError):
            self.world.await_(done, "all runs", TIMEOUT, pause=1)
        self.report.expect(self.world.airflow.ended() is None, f"{self.world.airflow.ended()}")
        ended = self._look()
        states = Counter(ended.get(run_id, "unfinished") for run_id in self._runs)
        for run_id in self._runs:
            if ended.get(run_id) != "success":
                found = Counter((one["task_id"], one["state"]) for one in self.world.tasks(run_id))
                self.report.expect(False, f"{run_id}: {dict(found)}")
        return states

    def _tasks(self) -> None:
        tasks = self.world.all_tasks()
        self.report.say("task instances", len(tasks))
        self.report.say("of them tried more than once", sum(one["try_number"] > 1 for one in tasks))
        places = Counter(one["hostname"] for one in tasks if one["hostname"])
        for place in sorted(places):
            self.report.say(f"last tries on {place}", places[place])
        for name in sorted({one["task_id"] for one in tasks}):
            lengths = [one["duration"] for one in tasks if one["task_id"] == name and one["duration"]]
            if lengths:
                self.report.say(f"median seconds of {name}", f"{statistics.median(lengths):.1f}")
        queued = [_seconds(one["queued_when"], one["start_date"]) for one in tasks if one["queued_when"]]
        self.report.say("median seconds in the queue", f"{statistics.median(one for one in queued if one >= 0):.1f}")
        again = {_name(one) for one in tasks if one["try_number"] > 1}
        self.report.expect(
            self._caught <= again, f"not tried again after their worker was lost: {self._caught - again}"
        )
        for worker in WORKERS:
            self.report.expect(places[worker] > 0, f"{worker} did nothing")

    def _requests(self) -> None:
        journal = self.world.recall.journal("api")
        kinds = Counter(oracle._class_of(entry) for entry in journal)
        for kind in ("list", "retrieve"):
            self.report.say(f"{kind} requests a meeting", f"{kinds[kind] / self._count:.1f}")

    def _judge(self, state: str) -> None:
        world = self.world
        world.await_zombies()
        truths = [world.recall.control("GET", f"/truth/{one.recording_id}") for one in self._runs.values()]
        parts = [part for truth in truths for artifact in truth["artifacts"] for part in artifact["parts"]]
        archive = oracle.Bucket(world.s3.endpoint, BUCKET, world.archive.rpartition("/")[2])
        objects = archive.objects()
        self.report.say("parts", f"{len(parts)}, {sum(part['length'] for part in parts) / MIB:.0f} MiB")
        self.report.say("objects stored", len(objects))
        stored = sum("/participant=" in key for key in objects)
        self.report.expect(stored == len(parts), f"{stored} parts stored of {len(parts)}")
        settled = sum(key.endswith("/manifest.json") for key in objects)
        self.report.expect(settled == self._count, f"{settled} manifests for {self._count} meetings")
        evidence = oracle.Evidence(
            truths, [oracle.Finished(0, {"state": state})], journal=world.recall.journal("media"), single=False
        )
        found = oracle.judge(archive, evidence)
        kinds = Counter(problem.kind for problem in found)
        for kind in sorted({*VERDICTS, *kinds}):
            self.report.say(kind, kinds[kind])
        for problem in found:
            self.report.expect(False, f"{problem.kind}: {problem.detail}")
        # The database keeps values compressed: as text they can be searched.
        world.services.dump(world.airflow.home / "database.sql")
        secrets = Secrets(world)
        hits = secrets.hits()
        self.report.say(
            "secrets found", f"{len(hits)} in {secrets.searched / MIB:.0f} MiB, {secrets.links} links known"
        )
        self.report.expect(not hits and secrets.links > 0, f"secrets: {hits}, links known: {secrets.links}")


def _name(task: dict[str, Any]) -> tuple[str, str, int]:
    """Give what a task instance is called in every try; its id is another each time."""
    return task["dag_run_id"], task["task_id"], task["map_index"]


def _seconds(start: str, end: str | None) -> float:
    if end is None:
        return -1.0
    first, last = (datetime.fromisoformat(one.replace("Z", "+00:00")) for one in (start, end))
    return (last - first).total_seconds()


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the campaign; the exit status is 0 only if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.campaign")
    parser.add_argument("--meetings", type=int, default=50)
    parser.add_argument("--call-seconds", type=float, default=120.0, help="of meetings that are still in the call")
    parser.add_argument("--no-kill", action="store_true", help="lose nothing")
    parser.add_argument("--folder", type=Path, help="keep all that is left behind here")
    options = parser.parse_args(None if arguments is None else list(arguments))
    require()
    began = time.monotonic()
    with contextlib.ExitStack() as resources:
        folder = options.folder or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="distributed-")))
        folder.mkdir(parents=True, exist_ok=True)
        services = resources.enter_context(Services(folder / "logs"))
        world = Deployment(folder, log_level="INFO", services=services)
        resources.enter_context(world)
        campaign = Campaign(world, options.meetings, options.call_seconds)
        campaign.report.say("seconds to start everything", f"{time.monotonic() - began:.0f}")
        campaign.run(kill=not options.no_kill)
        world.__exit__()
        left = world.processes()
        campaign.report.expect(not left, f"processes are left: {left}")
    campaign.report.say("seconds in all", f"{time.monotonic() - began:.0f}")
    print("\n".join(["", *campaign.report.problems, "not good" if campaign.report.problems else "all is well"]))
    return 1 if campaign.report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
