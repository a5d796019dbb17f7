"""Damage is made good from what the source has, and nothing else is touched: on a local folder and on a strict S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import verify
from include.archive.copy import Stop
from include.archive.layout import PAGE_NAME
from include.archive.stores import open_store
from include.provider.hook import RecallHook
from include.provider.repair import Outcome, Repairer
from include.provider.transfer import Ends, already_settled
from tests.include.archive.conftest import make_client
from tests.include.provider.world import BUCKET, LATER, MADE, World, s3_store
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.process import RunningSimulator

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def s3() -> Iterator[Process]:
    with Process(bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def world(request: pytest.FixtureRequest, simulator: RunningSimulator, tmp_path: Path) -> World:
    if request.param == "local":
        return World(simulator, open_store((tmp_path / "archive").as_uri()), None)
    server: Process = request.getfixturevalue("s3")
    server.reset()
    return World(simulator, s3_store(server), server)


DAMAGED = "flip"
GONE = "remove"


def spoil(world: World, how: str, key: str) -> None:
    (world.flip if how == DAMAGED else world.remove)(key)


@pytest.mark.parametrize("size", [3200, 9 * 2**20])
@pytest.mark.parametrize(("how", "action"), [(DAMAGED, "replaced"), (GONE, "restored")])
def test_one_part_is_made_good_and_nothing_else_touched(world: World, how: str, action: str, size: int) -> None:
    meetings = [world.meeting(size=size, parts=1), world.meeting()]
    before = world.state()
    contents = {key: world.content(key) for key in before}
    victim = world.keys(meetings[0]["folder"])[1]
    spoil(world, how, victim)
    world.simulator.control("DELETE", "/journal")
    if world.server is not None:
        world.server.control("DELETE", "journal")
    assert world.repair() == {victim: Outcome(action=action)}
    if world.server is not None:
        assert world.written() == [victim]
        (write,) = [one for one in world.server.state()["writes"] if one["overwrote"]] or [None]
        assert (write is not None) == (how == DAMAGED)
        assert world.server.state()["uploads"] == []
    after = world.state()
    assert {key: world.content(key) for key in after} == contents
    assert {key for key in before if before[key] != after[key]} == {victim}
    assert len(world.simulator.journal("media")) == 1
    assert world.findings() == []


def test_many_at_once(world: World) -> None:
    meetings = [world.meeting() for _ in range(4)]
    before = {key: world.content(key) for key in world.state()}
    for number, meeting in enumerate(meetings[:3]):
        keys = world.keys(meeting["folder"])
        spoil(world, GONE if number else DAMAGED, keys[0])
        spoil(world, DAMAGED, keys[1])
    outcomes = world.repair()
    assert sorted(one.action or "" for one in outcomes.values()) == ["replaced"] * 4 + ["restored"] * 2
    assert {key: world.content(key) for key in world.state()} == before
    assert world.findings() == []


@pytest.mark.parametrize("how", [DAMAGED, GONE])
@pytest.mark.parametrize("with_part", [False, True])
def test_a_manifest_is_rebuilt(world: World, how: str, with_part: bool) -> None:
    meeting, other = world.meeting(), world.meeting()
    *parts, place = world.keys(meeting["folder"])
    truth, original = {key: world.content(key) for key in parts}, json.loads(world.content(place))
    spoil(world, how, place)
    if with_part:
        world.flip(parts[0])
        world.remove(parts[1])
    before = world.state()
    outcomes = world.repair()
    assert outcomes.pop(place if how == DAMAGED else meeting["folder"]).action == "rebuilt"
    mended = {parts[0]: "replaced", parts[1]: "restored"} if with_part else {}
    assert {key: one.action for key, one in outcomes.items()} == mended
    assert {key: world.content(key) for key in parts} == truth
    rebuilt = json.loads(world.content(place))
    assert rebuilt["recording"] == original["recording"]
    assert [(one["key"], one["sha256"]) for one in rebuilt["parts"]] == [
        (one["key"], one["sha256"]) for one in original["parts"]
    ]
    touched = {place, *(parts[:2] if with_part else [])}
    after = world.state()
    assert {key for key in after if before.get(key) != after[key]} == touched
    assert not touched & set(world.keys(other["folder"]))
    assert world.findings() == []


def test_a_missing_page_is_written_and_no_problem(world: World) -> None:
    folder = world.meeting()["folder"]
    page = f"{folder}/{PAGE_NAME}"
    drawn, before = world.content(page), world.state()
    world.remove(page)
    assert world.findings() == []
    assert world.repair() == {}
    assert world.content(page) == drawn
    assert world.state() == before
    world.flip(page)
    damaged = world.content(page)
    assert world.repair() == {}
    assert world.content(page) == damaged, "no look through the archive says what a page is to be"


def test_what_is_made_from_a_manifest_costs_one_write_each_and_a_second_run_none(
    simulator: RunningSimulator, s3: Process
) -> None:
    s3.reset()
    world = World(simulator, s3_store(s3), s3)
    folder = world.meeting()["folder"]

    def writes() -> list[str]:
        done = [one["key"] for one in s3.journal() if one["method"] in {"PUT", "POST"}]
        s3.control("DELETE", "journal")
        return [key for key in done if not key.endswith("probe.bin")]

    made = [f"audio/{folder}/{name}" for name in MADE]
    assert [key for key in writes() if key.endswith(MADE)] == made
    assert already_settled(world.store, folder) is not None
    assert writes() == []
    for name in MADE:
        world.remove(f"{folder}/{name}")
    assert already_settled(world.store, folder) is not None
    assert writes() == made


def test_what_the_source_no_longer_has(world: World) -> None:
    meeting = world.meeting()
    keys = world.keys(meeting["folder"])
    world.flip(keys[0])
    world.remove(keys[1])
    before = world.state()
    world.delete_at_the_source(meeting)
    outcomes = world.repair()
    assert {key: one.action for key, one in outcomes.items()} == {keys[0]: None, keys[1]: None}
    assert {one.code for one in outcomes.values()} == {"media_deleted"}
    assert world.state() == before


def test_a_lost_manifest_whose_source_is_gone_too(world: World) -> None:
    meeting = world.meeting()
    *_, place = world.keys(meeting["folder"])
    world.flip(place)
    before = world.state()
    world.delete_at_the_source(meeting)
    (outcome,) = world.repair().values()
    assert (outcome.action, outcome.code) == (None, "media_deleted")
    assert world.state() == before


def test_a_source_that_gives_other_bytes_is_a_conflict(world: World) -> None:
    """As when the manifest itself is what is wrong, and nothing tells so."""
    meeting = world.meeting()
    *parts, place = world.keys(meeting["folder"])
    world.simulator.add_faults({"origin": "media", "path": "/1-0", "times": None, "action": {"flip": 500}})
    world.flip(parts[0])
    world.remove(parts[1])
    before = world.state()
    outcomes = world.repair()
    codes = {key: (one.action, one.code) for key, one in outcomes.items()}
    conflicts = [key for key, one in codes.items() if one == (None, "content_conflict")]
    assert conflicts, codes
    assert all(world.state().get(key) == before.get(key) for key in (*conflicts, place))


def test_a_manifest_never_leaves_out_what_is_stored(world: World) -> None:
    """Half of the source is gone; what is stored of it must not become an object that no manifest lists."""
    meeting = world.meeting()
    folder = meeting["folder"]
    *_, place = world.keys(folder)
    with world.store.write(f"{folder}/participant=9/lost/part.ogg", media_type="audio/ogg") as writer:
        writer.write(memoryview(b"OggS"))
        writer.commit({})
    world.flip(place)
    before = world.state()
    (outcome,) = world.repair().values()
    assert (outcome.action, outcome.code) == (None, "parts_owed")
    assert world.state() == before


def test_what_was_purged_does_not_come_back_with_its_manifest(world: World) -> None:
    meeting = world.meeting()
    folder = meeting["folder"]
    *parts, place = world.keys(folder)
    receipt = json.dumps({"recordings": [{"recording_id": meeting["id"]}]}, indent=1)
    world.store.put_if_absent("receipts/purged/1.json", receipt.encode(), "application/json")
    world.remove(parts[0])
    world.flip(place)
    before = world.state()
    (outcome,) = world.repair().values()
    assert (outcome.action, outcome.code) == (None, "purged")
    assert world.state() == before


def test_without_a_source_everything_is_reported(world: World) -> None:
    from include.recall.errors import RecallConfigError

    def refuse() -> Ends:
        raise RecallConfigError("no connection")

    meeting = world.meeting()
    world.flip(world.keys(meeting["folder"])[0])
    (checked,) = world.look()
    ((_, outcome),) = Repairer(refuse, stop=Stop()).repair(checked)
    assert (outcome.action, outcome.code) == (None, RecallConfigError.code)


def test_a_store_that_ignores_if_match_is_found_out_before_anything_is_replaced(simulator: RunningSimulator) -> None:
    with Process("--no-if-match", bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        world = World(simulator, s3_store(server), server)
        meeting = world.meeting()
        keys = world.keys(meeting["folder"])
        world.flip(keys[0])
        world.remove(keys[1])
        before = world.state()
        outcomes = world.repair()
        assert (outcomes[keys[0]].action, outcomes[keys[0]].code) == (None, "conditions_ignored")
        assert outcomes[keys[1]].action == "restored"
        after = world.state()
        assert {key for key in after if before.get(key) != after[key]} == {keys[1]}


def test_somebody_else_repairs_at_the_same_time(world: World) -> None:
    """The other one is done just before we are: what it stored stays, and is no failure."""
    meeting = world.meeting()
    victim = world.keys(meeting["folder"])[0]
    good = world.content(victim)
    world.flip(victim)
    (checked,) = world.look()
    (mine,) = [finding for finding in checked.findings]
    assert [one.action for _, one in Repairer(lambda: world.ends, stop=Stop()).repair(checked)] == ["replaced"]
    between = world.state()
    assert [one.code for _, one in Repairer(lambda: world.ends, stop=Stop()).repair(checked)] == [None]
    assert world.content(victim) == good
    if world.server is None:  # the same bytes have the same ETag, so there S3 takes them once more
        assert world.state() == between
    assert mine.version is not None


def test_a_foreign_writer_is_never_overwritten(world: World) -> None:
    meeting = world.meeting()
    victim = world.keys(meeting["folder"])[0]
    world.flip(victim)
    (checked,) = world.look()
    if world.server is not None:
        client: Any = make_client(world.server.endpoint)
        client.put_object(Bucket=BUCKET, Key=f"audio/{victim}", Body=b"foreign")
    else:
        world._path(victim).write_bytes(b"foreign")
    ((_, outcome),) = Repairer(lambda: world.ends, stop=Stop()).repair(checked)
    assert (outcome.action, outcome.code) == (None, "content_conflict")
    assert world.content(victim) == b"foreign"


# -- killed at every step --------------------------------------------------------------------------------------------

REPAIR = """
import json, os, sys
from tests.chaos.engine import spoil
from tests.include.provider.test_repair import repair_as_a_process

uri, endpoint, fault = sys.argv[1:]
repair_as_a_process(uri, endpoint, fault)
"""


def repair_as_a_process(uri: str, endpoint: str, fault: str) -> None:
    """Repair an archive, and be killed on the way: in a process of its own."""
    from include.provider.operators import open_ends  # noqa: F401 - imported before anything is counted
    from tests.chaos.engine import spoil as spoil_call

    store = open_store(uri, s3_client=lambda: make_client(endpoint))
    hook = RecallHook()
    ends = Ends(client=hook.get_conn(), media=hook.get_media(), store=store)
    checked = list(verify.look_through(store, first="", last="dt=9999", unsettled_before=LATER))
    if fault:
        name, number, action = fault.split(":")
        spoil_call(name, int(number), action)
    repairer = Repairer(lambda: ends, stop=Stop())
    for one in checked:
        repairer.repair(one)


def start(world: World, fault: str = "") -> subprocess.Popen[bytes]:
    uri = world.store.uri("").rstrip("/")
    endpoint = world.server.endpoint if world.server is not None else "http://127.0.0.1:1"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(world.simulator.connection),
    }
    return subprocess.Popen([sys.executable, "-c", REPAIR, uri, endpoint, fault], env=environment)


def check_whole_or_damaged(world: World, truth: dict[str, bytes], damaged: dict[str, bytes | None]) -> None:
    """Whatever happened, an object is the damaged one still, or the good one; others are as they were."""
    state = world.state()
    for key, good in truth.items():
        if key in state:
            assert world.content(key) in (good, damaged.get(key)), key
        else:
            assert damaged.get(key, b"") is None, key


FILE_CALLS = ["open", "write", "setxattr", "fsync", "rename", "link", "unlink"]


@pytest.mark.parametrize("call", FILE_CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_a_file_system_call(simulator: RunningSimulator, tmp_path: Path, call: str, when: str) -> None:
    world = World(simulator, open_store((tmp_path / "archive").as_uri()), None)
    meeting = world.meeting(people=1, parts=3)
    *parts, place = world.keys(meeting["folder"])
    truth = {key: world.content(key) for key in (*parts, place)}
    world.flip(parts[0])
    world.remove(parts[1])
    damaged: dict[str, bytes | None] = {parts[0]: world.content(parts[0]), parts[1]: None}
    number = {"open": 25, "write": 2, "fsync": 3, "setxattr": 4}.get(call, 1)
    process = start(world, f"{call}:{number}:kill-{when}")
    assert process.wait(60) == -signal.SIGKILL
    check_whole_or_damaged(world, truth, damaged)
    world.repair()
    assert {key: world.content(key) for key in truth} == truth
    assert world.findings() == []
    for _, unfinished in verify.stale(world.store, "dt=2026-03-04/", LATER):
        world.store.discard(unfinished)
    assert set(world.state()) == set(truth)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_every_write_to_s3(simulator: RunningSimulator, s3: Process, when: str) -> None:
    writes = "PutObject|CreateMultipartUpload|UploadPart|CompleteMultipartUpload|AbortMultipartUpload"
    # The trial of the store makes five; then come what is missing, the manifest, and what is damaged.
    for skip in (2, 5, 6, 7, 8) if when == "before" else (5, 6, 7):
        simulator.reset()
        s3.reset()
        world = World(simulator, s3_store(s3), s3)
        meeting = world.meeting(people=1, parts=3)
        *parts, place = world.keys(meeting["folder"])
        truth = {key: world.content(key) for key in (*parts, place)}
        world.flip(parts[0])
        world.remove(parts[1])
        world.flip(place)
        damaged: dict[str, bytes | None] = {key: world.content(key) for key in (parts[0], place)}
        damaged[parts[1]] = None
        s3.faults({"operation": writes, "action": "hold", "when": when, "skip": skip})
        process = start(world)
        held = wait_for_hold(s3, process)
        if held:
            process.kill()
        process.wait(60)
        s3.control("POST", "release", {"drop": when == "before"})
        s3.control("DELETE", "faults")
        assert held == (skip < 8)
        check_whole_or_damaged_manifest(world, truth, damaged, place)
        world.repair()
        assert {key: world.content(key) for key in parts} == {key: truth[key] for key in parts}
        assert world.findings() == []


def wait_for_hold(s3: Process, process: subprocess.Popen[bytes]) -> bool:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        if s3.control("GET", "held"):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    raise TimeoutError("the repair neither ended nor came to a write")


def check_whole_or_damaged_manifest(
    world: World, truth: dict[str, bytes], damaged: dict[str, bytes | None], place: str
) -> None:
    """The same, but a rebuilt manifest may tell of other proofs than the first one."""
    parts = {key: data for key, data in truth.items() if key != place}
    check_whole_or_damaged(world, parts, damaged)
    content = world.content(place)
    if content != damaged[place]:
        assert json.loads(content)["parts"]
