"""What is done to runs of `archive_meeting`, by kind, and what must hold afterwards.

A kind either harms its own run, and runs beside others, or harms a component that all runs share, and has a round to
itself. Ids are those of the failure catalogue.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from scripts.local_airflow import LocalAirflowError
from tests.chaos.airflow_world import COPY, HASTY_DAG, Meeting, MissedError, World

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

MIB = 1024 * 1024
STEPS = ("list_participant_audio", COPY, "settle")


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    :param title: what goes wrong.
    :param run: one schedule from its start to its checks.
    :param harm: done once for the whole round, while its runs are in flight.
    :param spoils: its rules strike whoever sends a bot next, so only one of these is in a round.
    """

    title: str
    run: Callable[[World, random.Random], None]
    harm: Callable[[World, random.Random, Flight], None] | None = None
    spoils: bool = False


class Flight:
    """The runs of a round whose fault is shared.

    :param number: how many they are.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._lock = threading.Condition()
        self._runs: list[str] = []
        self.over = threading.Event()

    def add(self, run_id: str) -> None:
        """Tell that a run has begun."""
        with self._lock:
            self._runs.append(run_id)
            self._lock.notify_all()

    def runs(self) -> list[str]:
        """Wait until all runs have begun."""
        with self._lock:
            assert self._lock.wait_for(lambda: len(self._runs) == self._number, timeout=120)
            return list(self._runs)


def archived(world: World, meeting: Meeting, run_id: str) -> None:
    """Wait for a run's success, and check what it stored."""
    state = world.finish(run_id)
    assert state == "success", f"{run_id} ended as {state}: {reasons(world, run_id)}"
    world.check(meeting.recording_id)


def reasons(world: World, run_id: str) -> dict[str, Any]:
    """Say which tasks did not succeed, after how many tries, and why."""
    return {
        f"{task['task_id']}[{task['map_index']}]": (
            task["state"],
            task["try_number"],
            world.code(run_id, task["task_id"], task["map_index"]),
        )
        for task in world.tasks(run_id)
        if task["state"] not in ("success", "skipped")
    }


def completed(world: World, meeting: Meeting) -> None:
    """Run once more after a failure, and find everything there."""
    archived(world, meeting, world.trigger({"recording_id": meeting.recording_id}))


# -- E01, E02: the task's process, its worker --------------------------------------------------------------------------


def kill_task_at_random(world: World, rng: random.Random) -> None:
    meeting = world.meet(rng, people=2, sizes=[90_000, 140_001])
    world.spoil("media", f"^/{meeting.artifact_id}/", {"rate": 50_000}, times=None)
    run_id = world.trigger({"bot_id": meeting.bot_id})
    step = rng.choice((COPY, COPY, COPY, "settle", "list_participant_audio"))
    task = world.running(run_id, STEPS[STEPS.index(step) :])
    time.sleep(rng.uniform(0, 2.5))
    while not world.kill_task(task):
        task = world.running(run_id, STEPS)
    archived(world, meeting, run_id)


def kill_task_at_a_call(world: World, rng: random.Random) -> None:
    if not world.archive.startswith("s3:"):
        return kill_task_in_transfer(world, rng)
    if rng.random() < 0.25:
        return kill_settling_at_its_write(world, rng)
    big = rng.random() < 0.5
    meeting = world.meet(rng, people=2, sizes=[9 * MIB + 77 if big else 120_000, 50_001])
    key = meeting.key(meeting.people[0])
    world.hold("PutObject", key, rng.choice(("before", "after")))
    run_id = world.trigger({"bot_id": meeting.bot_id})
    number = world.held(key)
    if not world.kill_task(world.running(run_id, [COPY], 0)):
        raise MissedError("the task ended while its call was held")
    time.sleep(rng.choice((0.0, 0.0, 3.0, 25.0)))
    world.release(number, drop=rng.random() < 0.3)
    archived(world, meeting, run_id)
    return None


def kill_task_in_transfer(world: World, rng: random.Random) -> None:
    size = rng.choice((120_000, 3 * MIB))
    meeting = world.meet(rng, people=2, sizes=[size, 50_001])
    rule = world.spoil("media", meeting.media_path(0), {"stall": rng.randrange(size), "stall_seconds": 60})
    run_id = world.trigger({"bot_id": meeting.bot_id})
    world.struck(rule)
    task = world.running(run_id, [COPY], 0)
    time.sleep(rng.uniform(0, 1))
    if not world.kill_task(task):
        raise MissedError("the task ended while its transfer stood still")
    archived(world, meeting, run_id)


def kill_settling_at_its_write(world: World, rng: random.Random) -> None:
    meeting = world.meet(rng, people=2, sizes=[50_001])
    key = f"recording={meeting.recording_id}/manifest.json"
    world.hold("PutObject", key, rng.choice(("before", "after")))
    run_id = world.trigger({"bot_id": meeting.bot_id})
    number = world.held(key)
    if not world.kill_task(world.running(run_id, ["settle"])):
        raise MissedError("settling ended while its write was held")
    world.release(number, drop=rng.random() < 0.5)
    archived(world, meeting, run_id)


def kill_task(world: World, rng: random.Random) -> None:
    if rng.random() < 0.4:
        kill_task_at_random(world, rng)
    else:
        kill_task_at_a_call(world, rng)


def kill_supervisor(world: World, rng: random.Random) -> None:
    """Let the task go on without its worker: until before its retry, into it, or beyond."""
    size = rng.choice((120_000, 9 * MIB + 5))
    meeting = world.meet(rng, people=2, sizes=[size, 50_001])
    seconds = rng.choice((8, 35, 60))
    if world.archive.startswith("s3:") and rng.random() < 0.5:
        key = meeting.key(meeting.people[0])
        world.hold("PutObject", key, "before", seconds=min(seconds, 50))
        run_id = world.trigger({"bot_id": meeting.bot_id})
        world.held(key)
    else:
        rule = world.spoil("media", meeting.media_path(0), {"rate": size / seconds})
        run_id = world.trigger({"bot_id": meeting.bot_id})
        world.struck(rule)
    if not world.kill_supervisor(world.running(run_id, [COPY], 0)):
        raise MissedError("the task's worker was gone")
    state = world.finish(run_id)
    assert state == "success", f"{run_id} ended as {state}: {reasons(world, run_id)}"
    world.await_zombies()
    world.check(meeting.recording_id)


# -- E09, E10, E13: time's up, a person intervenes ---------------------------------------------------------------------


def slow_first_part(world: World, rng: random.Random, seconds: float) -> tuple[Meeting, str]:
    """Make a meeting whose first participant's audio takes so long, once; return it with the rule's name."""
    size = 10 * MIB + rng.randrange(MIB)
    meeting = world.meet(rng, people=3, sizes=[size, 50_001, 20_000])
    # A stall near the end has most of it written by then; a trickle has a socket that is never silent.
    action = {"stall": size - 5, "stall_seconds": seconds} if rng.random() < 0.5 else {"rate": size / seconds}
    return meeting, world.spoil("media", meeting.media_path(0), action)


def time_out(world: World, rng: random.Random) -> None:
    meeting, _ = slow_first_part(world, rng, 40)
    run_id = world.trigger({"bot_id": meeting.bot_id}, dag=HASTY_DAG)
    state = world.finish(run_id, HASTY_DAG)
    assert state == "failed", f"{run_id} ended as {state}"
    if world.code(run_id, "settle", 0, HASTY_DAG) != "parts_owed":
        raise MissedError(f"settling said {world.code(run_id, 'settle', 0, HASTY_DAG)}")
    # On a busy machine a short copy may run out of time, too; each has one part.
    late = [one for one in world.tasks(run_id, HASTY_DAG) if one["task_id"] == COPY and one["state"] != "success"]
    world.check(meeting.recording_id, settled=False, missing=len(late))
    completed(world, meeting)


def intervene(world: World, rng: random.Random, *, clear: bool | None = None) -> None:
    meeting, rule = slow_first_part(world, rng, 40)
    run_id = world.trigger({"bot_id": meeting.bot_id})
    world.struck(rule)
    task = world.running(run_id, [COPY], 0)
    time.sleep(rng.uniform(1, 4))
    clear = rng.random() < 0.5 if clear is None else clear
    if clear:
        world.clear(run_id, 0)
    else:
        world.mark_failed(run_id, 0)
    if not clear:
        world.await_(lambda: not world.uploads(meeting.recording_id), "the write to be taken back", 30)
    state = world.finish(run_id)
    assert state == ("success" if clear else "failed"), f"{run_id} ended as {state}: {reasons(world, run_id)}"
    assert clear or world.code(run_id, "settle", 0) == "parts_owed"
    # Airflow ends a run that is marked failed before it has ended its tasks.
    world.await_(lambda: world.ours(task["pid"]) is None, "the end of the task", 30)
    if not clear:
        world.check(meeting.recording_id, settled=False, missing=1)
        completed(world, meeting)
    world.check(meeting.recording_id)


def clear_after_success(world: World, rng: random.Random) -> None:
    meeting = world.meet(rng, people=2, each=2, sizes=[70_000, 9 * MIB])
    run_id = world.trigger({"bot_id": meeting.bot_id})
    archived(world, meeting, run_id)
    before = world.objects(meeting.recording_id)
    index = rng.randrange(2)
    world.clear(run_id, index, downstream=rng.random() < 0.5)
    archived(world, meeting, run_id)
    (task,) = [one for one in world.tasks(run_id) if (one["task_id"], one["map_index"]) == (COPY, index)]
    assert task["try_number"] == 2, "it did not run again"
    assert world.objects(meeting.recording_id) == before


# -- E11, E14, E20 -----------------------------------------------------------------------------------------------------


def trigger_twice(world: World, rng: random.Random) -> None:
    meeting = world.meet(rng, people=2, each=2, sizes=[70_000, 30_001])
    conf = {"bot_id": meeting.bot_id}
    name = f"meeting-{meeting.recording_id}"

    def start(run_id: str) -> str | None:
        try:
            return world.trigger(conf, run_id)
        except LocalAirflowError as error:
            assert "HTTP 409" in str(error)  # noqa: PT017
            return None

    with ThreadPoolExecutor(3) as pool:
        started = list(pool.map(start, [name, name, f"{name}-again"]))
    assert sorted(one is None for one in started) == [False, False, True], started
    for run_id in filter(None, started):
        archived(world, meeting, run_id)
    before = world.objects(meeting.recording_id)
    since = world.recall.control("GET", "/journal")["count"]
    archived(world, meeting, world.trigger(conf))
    assert world.objects(meeting.recording_id) == before
    assert not bodies(world, meeting, since), "a settled meeting was fetched again"


def bodies(world: World, meeting: Meeting, since: int) -> list[dict[str, Any]]:
    """List the requests for a meeting's audio after the first so many requests."""
    entries = world.recall.journal()[since:]
    return [one for one in entries if one["origin"] == "media" and meeting.artifact_id in one["path"]]


def lose_one_part(world: World, rng: random.Random, *, people: int = 5) -> None:
    meeting = world.meet(rng, people=people, each=50 // people, sizes=[8_000, 12_001, 5_000])
    lost = rng.randrange(50)
    action = rng.choice(({"expired": True}, {"status": 403, "body": "no"}, {"status": 404, "body": "no"}))
    path = meeting.media_path(lost)
    rule = world.spoil("media", path, action, times=12)
    run_id = world.trigger({"bot_id": meeting.bot_id})
    state = world.finish(run_id)
    assert state == "failed", f"{run_id} ended as {state}"
    assert world.code(run_id, "settle", 0) == "parts_owed", reasons(world, run_id)
    world.check(meeting.recording_id, settled=False, missing=1)
    world.use_up(rule, f"{meeting.artifact_id}/{lost}-0")
    since = world.recall.control("GET", "/journal")["count"]
    completed(world, meeting)
    fetched = {one["path"] for one in bodies(world, meeting, since)}
    assert len(fetched) == 1, f"{len(fetched)} files were fetched, not one"


def many_people(world: World, rng: random.Random) -> Meeting:
    return world.meet(rng, people=5, sizes=[40_000, 60_001, 30_000])


def few_slots(world: World, rng: random.Random, flight: Flight) -> None:
    slots = rng.choice((1, 2))
    world.airflow.patch("/pools/default_pool?update_mask=slots", {"slots": slots})
    try:
        flight.runs()
        while not flight.over.wait(0.7):
            busy = world.airflow.get("/pools/default_pool")["running_slots"]
            assert busy <= slots, f"{busy} tasks on {slots} slots"
        spans = sorted((one["time"], one["time"] + (one["seconds"] or 0)) for one in world.recall.journal("media"))
        peak = max((sum(start <= at < end for start, end in spans) for at, _ in spans), default=0)
        assert peak <= slots, f"{peak} transfers at once on {slots} slots"
    finally:
        world.airflow.patch("/pools/default_pool?update_mask=slots", {"slots": 128})


# -- E03, E04, E07, B21: components ------------------------------------------------------------------------------------


def kill_scheduler(world: World, rng: random.Random, flight: Flight) -> None:
    world.running(rng.choice(flight.runs()), STEPS)
    time.sleep(rng.uniform(0, 3))
    names = ["scheduler"] if rng.random() < 0.5 else ["scheduler", "dag-processor"]
    for name in names:
        world.kill_component(name)
    time.sleep(rng.uniform(0, 6))
    for name in names:
        world.start_component(name)


def kill_api_server(world: World, rng: random.Random, flight: Flight) -> None:
    world.running(rng.choice(flight.runs()), STEPS)
    time.sleep(rng.uniform(0, 3))
    world.kill_component("api-server")
    time.sleep(rng.uniform(20, 60))
    world.start_component("api-server")


def kill_triggerer(world: World, rng: random.Random, flight: Flight) -> None:
    deferred(world, flight)
    world.kill_component("triggerer")
    time.sleep(rng.uniform(0, 8))
    world.start_component("triggerer")


def kill_triggerer_again_and_again(world: World, rng: random.Random, flight: Flight) -> None:
    deferred(world, flight)
    for _ in range(3):
        time.sleep(rng.uniform(1, 5))
        world.kill_component("triggerer")
        time.sleep(rng.uniform(0, 3))
        world.start_component("triggerer")


def deferred(world: World, flight: Flight) -> None:
    """Wait until every run waits in the triggerer."""
    for run_id in flight.runs():

        def waiting(run_id: str = run_id) -> bool:
            return any(one["state"] == "deferred" for one in world.tasks(run_id))

        world.await_(waiting, f"{run_id} to wait in the triggerer", 60)


def beside_others(
    make: Callable[[World, random.Random], Meeting],
) -> Callable[[World, random.Random], None]:
    """Return a schedule that only has to survive what is done to all."""

    def run(world: World, rng: random.Random) -> None:
        meeting = make(world, rng)
        run_id = world.trigger({"bot_id": meeting.bot_id})
        FLIGHTS[id(world)].add(run_id)
        archived(world, meeting, run_id)

    return run


FLIGHTS: dict[int, Flight] = {}
"""The flight that is in the air, by world."""


def ordinary(world: World, rng: random.Random) -> Meeting:
    meeting = world.meet(rng, people=3, sizes=[120_000, 90_001, 9 * MIB])
    world.spoil("media", f"^/{meeting.artifact_id}/[01]-", {"rate": 30_000}, times=None)
    return meeting


def still_running(seconds: float) -> Callable[[World, random.Random], Meeting]:
    """Return a maker of meetings that end so many seconds from now."""

    def make(world: World, rng: random.Random) -> Meeting:
        timeline = [
            {"at": 0, "code": "joining_call"},
            {"at": 1, "code": "in_call_recording"},
            {"at": seconds, "code": "call_ended", "sub_code": "call_ended_by_host"},
            {"at": seconds + 1, "code": "done"},
        ]
        return world.meet(rng, people=2, sizes=[60_000, 30_001], live=True, created_at=None, timeline=timeline)

    return make


# -- F01, F02, F05: sending a bot --------------------------------------------------------------------------------------


def lose_the_answer(world: World, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2))):
        world.spoil("api", "^/api/v1/bot/", {"drop": rng.choice(("after", "after", "before"))}, method="POST")
    url = meeting_url(rng)
    one_bot(world, url, [world.trigger({"meeting_url": url})])


def kill_while_sending(world: World, rng: random.Random) -> None:
    """Kill the task once its bot exists and before it has heard of it, or before the bot exists."""
    done = rng.random() < 0.7
    action = {"head_rate": 5.0} if done else {"delay": 20.0}
    rule = world.spoil("api", "^/api/v1/bot/", action, method="POST")
    url = meeting_url(rng)
    run_id = world.trigger({"meeting_url": url})
    world.running(run_id, ["send_bot"])
    world.struck(rule, answered=done)
    if not world.kill_task(world.running(run_id, ["send_bot"])):
        raise MissedError("the bot was sent before the task was killed")
    one_bot(world, url, [run_id])


def send_twice(world: World, rng: random.Random) -> None:
    url = meeting_url(rng)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda conf: world.trigger(conf), [{"meeting_url": url}] * 2))
    one_bot(world, url, runs)


def meeting_url(rng: random.Random) -> str:
    return f"https://example.zoom.us/j/{rng.randrange(10**9, 10**10)}"


def one_bot(world: World, url: str, runs: Sequence[str]) -> None:
    """Check that all runs had the same one bot, and archived what it recorded."""
    for run_id in runs:
        state = world.finish(run_id)
        assert state == "success", f"{run_id} ended as {state}: {reasons(world, run_id)}"
    (bot,) = bots(world, url)
    assert {world.airflow.xcom("archive_meeting", run_id, "send_bot") for run_id in runs} == {bot}
    state = world.recall.control("GET", "/state")
    (recordings,) = [one["recordings"] for one in state["bots"] if one["id"] == bot]
    for recording in recordings:
        world.check(recording["id"])


def bots(world: World, url: str) -> list[str]:
    """List the bots that were ever sent to a meeting."""
    found: list[str] = []
    page: str | None = f"{world.recall.base_url}/api/v1/bot/"
    while page:
        listed = requests.get(page, headers={"Authorization": world.recall.api_key}, timeout=30).json()
        number = url.rpartition("/")[2]
        found += [one["id"] for one in listed["results"] if number in str(one["meeting_url"])]
        page = listed["next"]
    return found


KINDS: dict[str, Kind] = {
    "E01": Kind("task killed", kill_task),
    "E02": Kind("worker killed, its task lives on", kill_supervisor),
    "E03": Kind("scheduler (and Dag processor) killed", beside_others(ordinary), kill_scheduler),
    "E04": Kind("triggerer killed while waiting", beside_others(still_running(12)), kill_triggerer),
    "E07": Kind("API server away for 20 to 60 s", beside_others(ordinary), kill_api_server),
    "E09": Kind("execution timeout", time_out),
    "E10": Kind("cleared or marked failed at work", intervene),
    "E11": Kind("triggered twice at once", trigger_twice),
    "E13": Kind("cleared after success", clear_after_success),
    "E14": Kind("one part of fifty lost", lose_one_part),
    "E20": Kind("pool of one or two slots", beside_others(many_people), few_slots),
    "F01": Kind("answer to a new bot lost", lose_the_answer, spoils=True),
    "F02": Kind("killed while sending a bot", kill_while_sending, spoils=True),
    "F05": Kind("two runs send a bot at once", send_twice),
    "B21": Kind("triggerer killed again and again", beside_others(still_running(40)), kill_triggerer_again_and_again),
}
