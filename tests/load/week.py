"""A week of meetings in minutes: sweep and webhooks both on, some of the webhooks lost, doubled or out of order.

    python -m tests.load.week
    python -m tests.load.week --meetings 40 --minutes 3

A real Airflow with our Dags as they are, and the simulator with Recall's limits. Meetings of 2 to 12 participants are
held all the time; some finish late, fail, have no separate audio, expire soon, or are gone before their audio is done.
The simulator tells Airflow of each by webhook, or fails to. The sweep runs every minute, as often as it can.
Nobody starts anything by hand. In the end each recording must be settled, exactly once, or be named by the sweep as
owed, failed or lost. The exit status is 0 if that is so, and every promise of the archive holds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.simulator.process import RunningSimulator, running_simulator
from scripts.local_airflow import LocalAirflow
from scripts.processes import unused_port
from tests.chaos import oracle
from tests.load.triggerer import busiest_minute, calls

if TYPE_CHECKING:
    from collections.abc import Iterable

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SWEEP_SECONDS = 60
KINDS = {
    "ordinary": 68,
    "audio late": 10,
    "recording fails": 5,
    "audio fails": 4,
    "no separate audio": 5,
    "expires soon": 4,
    "expires before its audio is done": 4,
}
SETTLED = frozenset({"ordinary", "audio late", "expires soon"})
WEBHOOK_FAULTS = (
    {"event": "", "chance": 0.1, "times": None, "lose": True},
    {"event": "", "chance": 0.1, "times": None, "copies": 2},
    {"event": "", "chance": 0.2, "times": None, "delay": 6.0},
)
PATIENCE_SECONDS = 900.0
SWEEP, START = "sweep_recordings", "start_archiving"
ENDED = frozenset({"success", "failed"})


@dataclass(frozen=True)
class Meeting:
    kind: str
    recording_id: str
    created_at: str
    gone: tuple[str, ...]


class Week:
    """One such week.

    :param archive: the folder that everything goes into.
    """

    def __init__(self, simulator: RunningSimulator, airflow: LocalAirflow, archive: Path) -> None:
        self.simulator = simulator
        self.airflow = airflow
        self.archive = archive
        self.meetings: list[Meeting] = []
        self.problems: list[str] = []
        self._draw = random.Random(20_261_123)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)
            print(f"PROBLEM: {problem}", flush=True)

    def hold(self, count: int, seconds: float) -> None:
        """Hold all meetings, evenly over the time."""
        began = time.monotonic()
        kinds = self._draw.choices(list(KINDS), weights=list(KINDS.values()), k=count)
        for number, kind in enumerate(kinds):
            time.sleep(max(0.0, began + number * seconds / count - time.monotonic()))
            self._hold(kind)

    def _hold(self, kind: str) -> None:
        length = self._draw.uniform(4, 30)
        parts = [
            {
                "participant": {"id": 100 + who, "name": f"Person {who}"},
                "relative": self._draw.uniform(0, 3),
                "audio": {"seed": self._draw.randrange(1 << 30), "bytes": 2 * self._draw.randint(100, 40_000)},
            }
            for who in range(self._draw.randint(2, 12))
        ]
        artifact: dict[str, Any] = {"parts": parts, "done_after": self._draw.uniform(0.5, 4)}
        recording: dict[str, Any] = {"artifacts": [artifact], "done_after": 1.0}
        expires = None
        if kind == "audio late":
            artifact["done_after"] = self._draw.uniform(45, 100)
        elif kind == "recording fails":
            recording |= {"status": "failed", "sub_code": "made_up"}
            artifact["status"] = "failed"
        elif kind == "audio fails":
            artifact |= {"status": "failed", "sub_code": "made_up"}
        elif kind == "no separate audio":
            recording["artifacts"] = []
        elif kind == "expires soon":
            expires = 300.0
        elif kind == "expires before its audio is done":
            artifact["done_after"], expires = 400.0, 100.0
        if expires is not None:
            recording["expires_at"] = _in(length + expires)
        end = {"at": length, "code": "call_ended", "sub_code": "call_ended_by_host"}
        timeline = [{"at": 0, "code": "joining_call"}, {"at": 1, "code": "in_call_recording"}, end]
        timeline.append({"at": length + 1, "code": "done"})
        made = self.simulator.add_meeting(live=True, timeline=timeline, recordings=[recording])
        found = made["recordings"][0]
        gone = tuple(one["id"] for one in found["artifacts"]) if kind not in SETTLED else ()
        created_at = self.simulator.control("GET", f"/truth/{found['id']}")["created_at"]
        self.meetings.append(Meeting(kind, found["id"], created_at, gone))

    def wait(self) -> None:
        """Wait until nothing is under way, and two more sweeps have looked."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            time.sleep(5)
            runs = self.runs("archive_meeting")
            settled = sum(self._manifest(one).exists() for one in self.meetings if one.kind in SETTLED)
            if all(one["state"] in ENDED for one in runs) and settled == self._count(SETTLED):
                break
        seen = len(self._sweeps())
        while len(self._sweeps()) < seen + 2 and time.monotonic() < give_up:
            time.sleep(5)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return all runs of a Dag, oldest first."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.airflow.get(f"/dags/{dag_id}/dagRuns?limit=100&offset={len(found)}&order_by=id")
            found += page["dag_runs"]
            if len(found) >= page["total_entries"] or not page["dag_runs"]:
                return found

    def _sweeps(self) -> list[dict[str, Any]]:
        return [one for one in self.runs(SWEEP) if one["state"] == "success"]

    def _count(self, kinds: Iterable[str]) -> int:
        return sum(one.kind in kinds for one in self.meetings)

    def _manifest(self, meeting: Meeting) -> Path:
        return self.archive / f"dt={meeting.created_at[:10]}" / f"recording={meeting.recording_id}" / "manifest.json"

    def judge(self) -> None:
        """Say what became of everything, and what is wrong."""
        runs = self.runs("archive_meeting")
        per_recording = Counter(one["dag_run_id"].removeprefix("recording__") for one in runs)
        states = {one["dag_run_id"].removeprefix("recording__"): one["state"] for one in runs}
        named = self._named()
        rows: dict[str, Counter[str]] = defaultdict(Counter)
        for one in self.meetings:
            settled = self._manifest(one).exists()
            names = sorted(named[one.recording_id])
            row = rows[one.kind]
            row["meetings"] += 1
            row["settled"] += settled
            row[f"run {states.get(one.recording_id, 'none')}"] += 1
            row.update(f"named {name}" for name in names if not settled)
            self.expect(settled == (one.kind in SETTLED), f"{one.kind} {one.recording_id}: settled is {settled}")
            self.expect(settled or bool(names), f"{one.kind} {one.recording_id} is neither settled nor named")
            self.expect(per_recording[one.recording_id] <= 1, f"{one.recording_id} has more than one run")
        known = {one.recording_id for one in self.meetings}
        self.expect(set(per_recording) <= known, f"runs of no recording: {set(per_recording) - known}")
        for kind, row in rows.items():
            print(f"{kind:34}" + ", ".join(f"{count} {name}" for name, count in row.items()))
        sweeps = self.runs(SWEEP)
        print(f"{'sweeps':34}" + ", ".join(f"{n} {state}" for state, n in Counter(o["state"] for o in sweeps).items()))
        self.expect(all(one["state"] != "failed" for one in sweeps), "a sweep failed")
        self._webhooks()
        self._requests()
        self._archive()

    def _named(self) -> dict[str, set[str]]:
        """Return under which headings each recording was named: by the last sweep, or by any for what is told once."""
        named: dict[str, set[str]] = defaultdict(set)
        sweeps = self._sweeps()
        for number, run in enumerate(sweeps):
            summary = self.airflow.xcom(SWEEP, run["dag_run_id"], START)
            for heading, ids in summary["ids"].items():
                if number == len(sweeps) - 1 or heading == "expired_before_archive":
                    for recording_id in ids:
                        named[recording_id].add(heading)
        return named

    def _webhooks(self) -> None:
        deliveries = self.simulator.control("GET", "/webhooks")["deliveries"]
        faults = Counter(one["fault"] for one in deliveries)
        statuses = Counter(one["status"] for one in deliveries if one["fault"] != "lost")
        slowest = max((one["seconds"] for one in deliveries if one["seconds"] is not None), default=0.0)
        print(
            f"{'webhook deliveries':34}{len(deliveries)}: {faults['lost']} lost, {faults['doubled']} doubled, ", end=""
        )
        print(f"{faults['delayed']} late; answers {dict(statuses)}, the slowest after {slowest:.2f} s")
        self.expect(set(statuses) <= {200, 202}, f"webhooks were answered with {dict(statuses)}")

    def _requests(self) -> None:
        journal = self.simulator.journal()
        refused = sum(one["status"] == 429 for one in journal)
        made = calls(journal)
        print(f"{'API calls':34}{dict(made)}, {made.total() / len(self.meetings):.1f} a meeting, {refused} 429s")
        for kind, limit in oracle.LIMITS.items():
            busiest = busiest_minute(journal, kind)
            print(f"{'  ' + kind + ' in the busiest minute':34}{busiest} of {limit}")
            self.expect(busiest <= limit, f"{busiest} {kind} calls within a minute")
        self.expect(refused == 0, f"{refused} requests were refused with 429")

    def _archive(self) -> None:
        truths = [self.simulator.control("GET", f"/truth/{one.recording_id}") for one in self.meetings]
        evidence = oracle.Evidence(
            truths,
            [oracle.Finished(0, {"state": "done"})],
            gone=[artifact for one in self.meetings for artifact in one.gone],
            journal=self.simulator.journal("media"),
            single=False,
        )
        found = [one for one in oracle.judge(_Recordings(self.archive), evidence) if one.kind != "outcome"]
        print(f"{'objects':34}{len(_Recordings(self.archive).objects())}; problems: {len(found)}")
        for problem in found:
            self.expect(False, f"{problem.kind}: {problem.detail}")


class _Recordings(oracle.Folder):
    """The recordings of an archive, without the notes beside them of what was lost."""

    def objects(self) -> dict[str, oracle.Stored]:
        return {key: stored for key, stored in super().objects().items() if key.startswith("dt=")}


def _in(seconds: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()


def play(folder: Path, meetings: int, minutes: float) -> bool:
    """Play a week; return whether all went well."""
    port, archive = unused_port(), folder / "archive"
    hook = f"http://127.0.0.1:{port}/recall/webhooks"
    with running_simulator(
        "--webhook-url", hook, "--webhook-secret", SECRET, "--webhook-retry-speed", "20"
    ) as simulator:
        connection = simulator.connection
        connection["extra"]["webhook_secrets"] = [SECRET]
        simulator.control("POST", "/webhooks/faults", list(WEBHOOK_FAULTS))
        env = {
            "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(connection),
            "AIRFLOW_VAR_RECALL_ARCHIVE_URI": archive.as_uri(),
            "AIRFLOW_VAR_RECALL_SWEEP_SCHEDULE": str(SWEEP_SECONDS),
            "AIRFLOW_VAR_RECALL_EXPIRY_ALERT_HOURS": "0.05",
            # Some bots asked for separate audio and got none: their runs wait so long before they say so.
            "AIRFLOW_VAR_RECALL_MEDIA_TIMEOUT_SECONDS": "240",
        }
        with LocalAirflow(folder / "airflow", env, port=port) as airflow:
            for dag_id in ("archive_meeting", SWEEP):
                airflow.wait_for_dag(dag_id)
            week = Week(simulator, airflow, archive)
            began = time.monotonic()
            week.hold(meetings, 60 * minutes)
            print(f"{'meetings held':34}{meetings} in {time.monotonic() - began:.0f} s", flush=True)
            week.wait()
            print(f"{'all is quiet after':34}{time.monotonic() - began:.0f} s", flush=True)
            week.judge()
    print("not good" if week.problems else "all is well")
    return not week.problems


def main(arguments: Iterable[str] | None = None) -> int:
    """Run it; the exit status is 0 only if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.week")
    parser.add_argument("--meetings", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=16.0, help="in which they are held (%(default)s)")
    parser.add_argument("--folder", type=Path, help="keep all that is left behind here")
    options = parser.parse_args(None if arguments is None else list(arguments))
    with contextlib.ExitStack() as resources:
        folder = options.folder or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="week-")))
        return 0 if play(folder.resolve(), options.meetings, options.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
