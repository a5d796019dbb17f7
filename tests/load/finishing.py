"""Two hundred meetings with eight participants each end within a minute: the time, against the least possible one.

    python -m tests.load.finishing
    python -m tests.load.finishing --meetings 30

One process is the triggerer; several workers run the real operators, each task for itself, against a simulator that
keeps to Recall's limits, in real time. The rest of Airflow is left out. The counts are from the simulator's journal.
The exit status is 0 if there was no 429 and everything is archived.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from include.simulator.process import RunningSimulator, running_simulator
from tests.load.triggerer import Triggerer, airflow_in, busiest_minute, calls

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

PARTICIPANTS = 8


class TaskInstance:
    """What the operators use of one, with the XCom rows of the tasks before."""

    def __init__(self, before: dict[str, Any] | None = None) -> None:
        self.before = before or {}
        self.pushed: dict[str, Any] = {}
        self.try_number = 1

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = json.loads(json.dumps(value))

    def xcom_pull(self, *, task_ids: list[str], key: str) -> list[Any]:
        return [self.before[key]] if key in self.before else []


def archive(event: dict[str, Any]) -> int:
    """Run all tasks that follow the wait; return how many parts are archived."""
    from include.provider import operators
    from include.provider.assets import RECORDING_ARCHIVED
    from include.provider.sensors import RecallRecordingSensor

    operators.naming = lambda context: nullcontext(lambda label: None)
    operators.show_label = lambda context, label: None

    def run(task: Any, ti: TaskInstance, *more: Any) -> Any:
        task.upstream_task_ids = {"before"}
        how = task.execute if not more else task.resume
        event = SimpleNamespace(extra=None)
        return how({"ti": ti, "run_id": "manual__1", "params": {}, "outlet_events": {RECORDING_ARCHIVED: event}}, *more)

    waited = TaskInstance()
    recordings = run(RecallRecordingSensor(task_id="wait", bot_id="b"), waited, event)
    listed = TaskInstance(waited.pushed)
    batches = run(operators.RecallListParticipantAudioOperator(task_id="list", recordings=recordings), listed)
    receipts = [
        run(operators.RecallArchiveParticipantOperator(task_id="archive", batch=batch), TaskInstance(listed.pushed))
        for batch in batches
    ]
    return sum(
        run(
            operators.RecallSettleRecordingOperator(task_id="settle", recording=one, archived=receipts), TaskInstance()
        )["parts"]
        for one in recordings
    )


def work(events: Queue[Any], results: Queue[Any]) -> None:
    """Be a worker: archive what has ended, until told to stop."""
    while (event := events.get()) is not None:
        try:
            results.put((time.time(), archive(event)))
        except Exception as error:
            results.put((time.time(), f"{type(error).__name__}: {error}"))


def play(simulator: RunningSimulator, meetings: int, workers: int, share: float, spread: float) -> bool:
    from include.provider.triggers import RecallRecordingTrigger

    rest = 10.0 + meetings / 20
    draw = random.Random(1)
    began = time.time()
    triggers, last = [], 0.0
    for _ in range(meetings):
        ends = max(0.0, rest + draw.uniform(0, spread) - (time.time() - began))
        last = max(last, time.time() + ends + 6)
        timeline = [{"at": 0, "code": "in_call_recording"}, {"at": ends, "code": "call_ended"}]
        timeline.append({"at": ends + 2, "code": "done"})
        parts = [
            {"participant": {"id": who, "name": f"P{who}"}, "audio": {"seed": who, "bytes": 3200}}
            for who in range(PARTICIPANTS)
        ]
        made = simulator.add_meeting(live=True, timeline=timeline, recordings=[{"artifacts": [{"parts": parts}]}])
        arguments: dict[str, Any] = {"recall_conn_id": "recall_default", "recording_id": None, "poll_interval": None}
        arguments |= {"media_timeout": 3600.0, "wait_timeout": 86400.0, "started_at": began, "request_share": share}
        trigger = RecallRecordingTrigger(
            **arguments, bot_id=made["bot_id"], stage="in_call_recording", seen_at=time.time()
        )
        triggers.append(trigger)
    events, results = multiprocessing.Queue(), multiprocessing.Queue()  # type: ignore[var-annotated]
    processes = [multiprocessing.Process(target=work, args=(events, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    noticed: list[float] = []

    def fired(_: int, payload: Any) -> None:
        noticed.append(time.time())
        events.put(payload)

    asyncio.run(Triggerer().run(triggers, seconds=900, fired=fired))
    done = [results.get(timeout=300) for _ in noticed]
    for _ in processes:
        events.put(None)
    for process in processes:
        process.join()
    first = last - spread - 6
    failed = [what for _, what in done if what != PARTICIPANTS]
    journal = simulator.journal()
    made = calls(journal)
    refused = sum(one["status"] == 429 for one in journal)
    print(f"{meetings} meetings of {PARTICIPANTS} end within {spread:.0f} s; {workers} workers, share {share}")
    print(f"  calls {dict(made)}, {made.total() / meetings:.1f} a meeting; 429s {refused}")
    for kind, limit in (("list", 60), ("retrieve", 300)):
        print(f"  {kind:9} in the busiest minute {busiest_minute(journal, kind):4} of {limit}")
    print(f"  last meeting noticed {max(noticed, default=last) - last:6.1f} s after the last one was ready")
    archived = max(at for at, _ in done)
    print(f"  last one archived    {archived - last:6.1f} s after; {archived - first:.0f} s from the first end")
    for name, part in (("limits", 1.0), ("share of them", share)):
        # Each needs three retrieve calls: what became of its bot, then bot and artifact for the manifest.
        minutes = -(-3 * meetings // int(300 * part)) - 1
        print(f"  least possible under Recall's {name}: {max(spread, 60 * minutes):.0f} s from the first end")
    if failed:
        print(f"  failed: {len(failed)}, first: {failed[0]}")
    return refused == 0 and not failed and len(done) == meetings


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.finishing", description="Archive many meetings at once."
    )
    parser.add_argument("--meetings", type=int, default=200)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--spread", type=float, default=60.0, help="seconds within which all end (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as folder, running_simulator() as simulator:
        airflow_in(folder)
        os.environ["AIRFLOW_CONN_RECALL_DEFAULT"] = json.dumps(simulator.connection)
        os.environ["AIRFLOW_VAR_RECALL_REQUEST_SHARE"] = str(options.share)
        os.environ["AIRFLOW_VAR_RECALL_ARCHIVE_URI"] = (Path(folder) / "archive").as_uri()
        return 0 if play(simulator, options.meetings, options.workers, options.share, options.spread) else 1


if __name__ == "__main__":
    sys.exit(main())
