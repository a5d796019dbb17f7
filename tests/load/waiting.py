"""A thousand meetings wait for ten minutes, in real time, against a simulator that keeps to Recall's limits.

    python -m tests.load.waiting
    python -m tests.load.waiting --meetings 300 --seconds 180

The triggers run in Airflow's own shared stream, as in a triggerer. Eight in ten meetings are being recorded, one in ten
is in a waiting room, one in ten is joining; some end meanwhile. The counts are from the simulator's journal. The exit
status is 0 if there was no 429, and every meeting that ended was noticed once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from typing import Any

from include.simulator.process import RunningSimulator, running_simulator
from tests.load.triggerer import Triggerer, airflow_in, busiest_minute, calls


def meeting(simulator: RunningSimulator, number: int, ends: float) -> tuple[str, str]:
    """Make a meeting, and return its bot and its stage."""
    stage = {8: "in_waiting_room", 9: "joining_call"}.get(number % 10, "in_call_recording")
    timeline = [{"at": 0, "code": "joining_call"}]
    if stage == "in_waiting_room":
        timeline.append({"at": 0, "code": stage})
    if stage == "in_call_recording":
        timeline += [{"at": 0, "code": stage}, {"at": ends, "code": "call_ended"}, {"at": ends + 2, "code": "done"}]
    part = {"participant": {"id": 1, "name": "Ada"}, "audio": {"seed": 1, "bytes": 320}}
    recordings = [{"artifacts": [{"parts": [part]}]}] if stage == "in_call_recording" else []
    made = simulator.add_meeting(live=True, timeline=timeline, recordings=recordings)
    return made["bot_id"], stage


def play(simulator: RunningSimulator, meetings: int, seconds: float) -> bool:
    from include.provider.triggers import RecallRecordingTrigger

    # One recording in forty ends, spread over the first half of the time.
    ends = {number: seconds * (0.1 + 0.4 * number / meetings) for number in range(0, meetings, 40)}
    began = time.time()
    triggers = []
    for number in range(meetings):
        bot_id, stage = meeting(simulator, number, ends.get(number, 86400.0))
        arguments: dict[str, Any] = {"recall_conn_id": "recall_default", "recording_id": None, "poll_interval": None}
        arguments |= {"media_timeout": 3600.0, "wait_timeout": 86400.0, "started_at": began}
        triggers.append(RecallRecordingTrigger(**arguments, bot_id=bot_id, stage=stage, seen_at=time.time()))
    noticed: dict[int, float] = {}
    triggerer = Triggerer()
    started = time.time()
    cpu = time.process_time()
    asyncio.run(
        triggerer.run(
            triggers,
            seconds=seconds,
            fired=lambda number, _: noticed.setdefault(number, time.time()),
            lacks=lambda: not ends.keys() <= noticed.keys(),
        )
    )
    cpu = time.process_time() - cpu
    journal = simulator.journal()
    refused = sum(one["status"] == 429 for one in journal)
    print(f"{meetings} meetings, {seconds:.0f} s; {dict(calls(journal))}; CPU of the triggers {cpu:.1f} s")
    for kind, limit in (("list", 60), ("retrieve", 300)):
        print(f"  {kind:9} in the busiest minute {busiest_minute(journal, kind):4} of {limit}")
    late = sorted(noticed[number] - (began + at) for number, at in ends.items() if number in noticed)
    if late:
        print(f"  {len(late)} of {len(ends)} ended and were noticed after {late[0]:.0f} to {late[-1]:.0f} s, "
              f"half within {late[len(late) // 2]:.0f} s")  # fmt: skip
    print(f"  429s {refused}; set up in {started - began:.0f} s")
    once = all(len(events) == 1 and "recordings" in events[0] for events in triggerer.events.values())
    return refused == 0 and once and set(noticed) == set(ends)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.waiting", description="Wait for many meetings.")
    parser.add_argument("--meetings", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as folder, running_simulator() as simulator:
        airflow_in(folder)
        os.environ["AIRFLOW_CONN_RECALL_DEFAULT"] = json.dumps(simulator.connection)
        return 0 if play(simulator, options.meetings, options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
