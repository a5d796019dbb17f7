"""Kill a deletion at the source around every call that it makes, spoil what it relies on, and see what it deletes.

    python -m tests.chaos.deletions

Each ladder climbs from the first call of a deletion (to the API, the media host or the store) to its last. Each
schedule puts something wrong with the archive, the source or the answers. Whatever happens: nothing may be asked to be
deleted whose every part is not in the archive, byte for byte, by the simulator's own account of its bodies.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos import oracle
from tests.strict_s3.process import Process as StrictS3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from include.provider.transfer import Ends

FILE_CALLS = ("mkdir", "open", "read", "write", "setxattr", "fchmod", "fsync", "link", "unlink")
TRIES = 4
LONG_AGO = "2026-03-04T09:55:00+00:00"
PREFIX = "archive"

DELETED, REFUSED, GAVE_UP = 0, 3, 4

LIST = r"^/api/v1/audio_separate/\?"
ONE = r"^/api/v1/recording/"

# What must keep everything at the source, and what is done for it.
HOPELESS = (
    "object with a flipped bit",
    "object cut short",
    "object missing",
    "object of another part",
    "manifest missing",
    "part that is not in the manifest",
    "artifact that is not in the manifest",
    "gap in the manifest",
    "artifact processing",
    "artifact failed",
    "artifact unlisted",
    "recording processing",
    "body of another length",
)
HARMLESS = ("nothing", "foreign object", "foreign proof")

# What the source answers to the deletion itself.
ANSWERS: dict[str, dict[str, Any] | None] = {
    "204": None,
    "409": {"status": 409, "body": {"code": "conflict", "detail": "Cannot delete media while it is processing."}},
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "500": {"status": 500},
    "502 after doing it": {"status": 502, "after_work": True},
    "answer lost": {"drop": "after"},
    "request lost": {"drop": "before"},
    "page of a firewall": {"html": 403},
}


@dataclass
class Meeting:
    """An archived meeting of two artifacts."""

    recording_id: str
    folder: str
    truth: dict[str, Any]


@dataclass
class Tally:
    """What was tried, by its name, and what went wrong."""

    attempted: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    runs: int = 0
    requests: int = 0

    def tell(self, name: str, problems: list[str]) -> None:
        self.attempted[name] += 1
        if problems:
            self.failed[name] += 1
            print(f"FAILED {name}: {'; '.join(problems)}", flush=True)

    def table(self) -> str:
        lines = [f"{'deletion':44}{'attempted':>10}{'passed':>8}{'failed':>8}"]
        rows = [(name, count, self.failed[name]) for name, count in self.attempted.items()]
        rows.append(("all", self.attempted.total(), self.failed.total()))
        lines += [f"{name:44}{count:>10}{count - bad:>8}{bad:>8}" for name, count, bad in rows]
        return "\n".join([*lines, f"{self.runs} runs, {self.kills} kills, {self.requests} deletions asked for"])


class World:
    """A simulator and one kind of store; meetings are archived in this process and deleted in others.

    :param simulator: running.
    :param kind: ``file`` or ``s3``.
    :param folder: for a file archive.
    :param server: for an S3 archive.
    """

    def __init__(self, simulator: Any, kind: str, folder: Path, server: StrictS3 | None, tally: Tally) -> None:
        self.simulator = simulator
        self.kind = kind
        self.folder = folder
        self.server = server
        self.tally = tally
        self.eyes: oracle.Archive = (
            oracle.Folder(folder) if server is None else oracle.Bucket(server.endpoint, server.bucket, PREFIX)
        )
        self._objects: Any = None

    def ends(self) -> Ends:
        from include.archive.stores import open_store
        from include.provider.transfer import Ends
        from include.recall.client import RecallClient
        from include.recall.media import MediaClient
        from include.recall.retry import RetryPolicy

        policy = RetryPolicy(attempts=3, base=0.02, longest=0.1)
        client = RecallClient(api_key=self.simulator.api_key, base_url=self.simulator.base_url, retry=policy)
        hosts = [self.simulator.media_host, self.simulator.base_url.split("://", 1)[1]]
        media = MediaClient(allowed_hosts=hosts, retry=policy)
        uri = self.folder.as_uri() if self.server is None else f"s3://{self.server.bucket}/{PREFIX}"
        return Ends(client=client, media=media, store=open_store(uri, s3_client=self._s3))

    def _s3(self) -> Any:
        import boto3

        assert self.server is not None
        return boto3.client(
            "s3",
            endpoint_url=self.server.endpoint,
            region_name=self.server.region,
            aws_access_key_id=self.server.access_key,
            aws_secret_access_key=self.server.secret_key,
        )

    def meeting(self, seed: int) -> Meeting:
        """Make a meeting and archive it."""
        from datetime import datetime

        from include.archive.copy import Stop
        from include.archive.layout import recording_folder
        from include.provider import transfer

        self.simulator.reset()
        artifacts = [
            {
                "parts": [
                    {"participant": {"id": who, "name": f"P{who}"}, "audio": {"seed": 10 * seed + n, "bytes": 3200}}
                    for n, who in people
                ]
            }
            for people in (((1, 1), (2, 2)), ((3, 2),))
        ]
        ids = self.simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": artifacts}])
        recording_id = ids["recordings"][0]["id"]
        truth = self.simulator.control("GET", f"/truth/{recording_id}")
        ends = self.ends()
        folder = recording_folder(datetime.fromisoformat(LONG_AGO), recording_id)
        receipts = [
            receipt
            for batch in transfer.plan(ends, [(recording_id, folder)])
            for receipt in transfer.archive(ends, batch, stop=Stop())
        ]
        transfer.settle(ends, recording_id, folder, bot_id=None, receipts=receipts, reasons={})
        self.simulator.control("DELETE", "/journal")
        return Meeting(recording_id, folder, truth)

    def run(self, meeting: Meeting, *, kill: tuple[str, int] | None = None, scope: str = "audio_separate") -> int:
        """Delete in a process of its own, with as many tries as the Dag gives it; return how that ended.

        :param kill: ``before`` or ``after``, and at which of its calls, from 0.
        """
        self.tally.runs += 1
        pid = os.fork()
        if not pid:
            status = 70
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                if kill is not None:
                    kill_at(*kill)
                status = delete(self.ends(), meeting, scope)
            finally:
                os._exit(status)
        _, ended = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(ended)
        self.tally.kills += code == -signal.SIGKILL
        return code

    def asked(self) -> list[str]:
        """Return what the source was asked to delete."""
        return [one["path"] for one in self.simulator.journal("api") if one["method"] == "DELETE"]

    def judge(self, meeting: Meeting, harmless: bool = True) -> list[str]:
        """Say what is wrong: a deletion that was asked for without a copy of every part, or without a proof before."""
        asked = self.asked()
        self.tally.requests += len(asked)
        if not asked:
            return []
        wrong = [f"{one.kind}: {one.detail}" for one in oracle.whole(self.eyes, meeting.truth) if one.kind != "phantom"]
        if not harmless:
            wrong.append(f"{len(asked)} deletions were asked for")
        proven: set[str] = set()
        for key in self.eyes.objects():
            if key.startswith(f"receipts/deleted/{meeting.recording_id}/proof-"):
                proof = json.loads(self.eyes.read(key))
                proven.update(proof["artifact_ids"] if proof else [])
        return wrong + [f"{path} was asked for without a proof" for path in asked if path.split("/")[-2] not in proven]

    def receipt(self, meeting: Meeting) -> dict[str, Any] | None:
        key = f"receipts/deleted/{meeting.recording_id}.json"
        return json.loads(self.eyes.read(key)) if key in self.eyes.objects() else None

    def is_gone(self, meeting: Meeting) -> bool:
        client = self.ends().client
        left = client.list_audio_separate(meeting.recording_id)
        return all(one.status == "deleted" for one in left)

    def done(self, meeting: Meeting) -> list[str]:
        """Say what is wrong after a deletion that had every chance to succeed."""
        receipt = self.receipt(meeting)
        wrong = [] if self.is_gone(meeting) else ["the audio is still at the source"]
        if receipt is None:
            return [*wrong, "there is no receipt"]
        if sorted(receipt["artifacts"]) != sorted(one["id"] for one in meeting.truth["artifacts"]):
            wrong.append("the receipt names other artifacts")
        return wrong

    def keys(self, meeting: Meeting) -> list[str]:
        """Return the keys of the parts."""
        return sorted(one for one in self.eyes.objects() if one.startswith(meeting.folder) and "participant=" in one)

    def put(self, key: str, data: bytes | None) -> None:
        """Replace or remove an object, past everything."""
        if self.server is None:
            path = self.folder / key
            if data is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            return
        client, place = self._s3(), {"Bucket": self.server.bucket, "Key": f"{PREFIX}/{key}"}
        if data is None:
            client.delete_object(**place)
        else:
            client.put_object(**place, Body=data)

    def edit(self, meeting: Meeting, change: Callable[[dict[str, Any]], Any]) -> None:
        key = f"{meeting.folder}/manifest.json"
        document = json.loads(self.eyes.read(key))
        change(document)
        self.put(key, json.dumps(document).encode())

    def spoil(self, meeting: Meeting, what: str) -> None:
        """Put something wrong."""
        first, second = self.keys(meeting)[:2]
        good = self.eyes.read(first)
        rule: dict[str, Any] = {"method": "GET", "times": None}
        in_list = {**rule, "path": LIST}
        actions: dict[str, Callable[[], Any]] = {
            "nothing": lambda: None,
            "foreign object": lambda: self.put(f"{meeting.folder}/participant=1/stranger.bin", b"x"),
            "foreign proof": lambda: self.put(f"receipts/deleted/{meeting.recording_id}/proof-0.json", b"[]"),
            "object with a flipped bit": lambda: self.put(first, good[:-1] + bytes([good[-1] ^ 1])),
            "object cut short": lambda: self.put(first, good[:-1]),
            "object missing": lambda: self.put(first, None),
            "object of another part": lambda: self.put(first, self.eyes.read(second)),
            "manifest missing": lambda: self.put(f"{meeting.folder}/manifest.json", None),
            "part that is not in the manifest": lambda: self.edit(meeting, lambda one: one["parts"].pop()),
            "artifact that is not in the manifest": lambda: self.edit(meeting, _without_first_artifact),
            "gap in the manifest": lambda: self.edit(meeting, _with_gap),
            "artifact processing": lambda: self._fault(in_list, {"set": {"results.0.status.code": "processing"}}),
            "artifact failed": lambda: self._fault(in_list, {"set": {"results.1.status.code": "failed"}}),
            "artifact unlisted": lambda: self._fault(in_list, {"remove": ["results.0"]}),
            "recording processing": lambda: self._fault({**rule, "path": ONE}, {"set": {"status.code": "processing"}}),
            "body of another length": lambda: self._fault(
                {**rule, "origin": "media"}, {"content": {"seed": 5, "bytes": 3000}}
            ),
        }
        actions[what]()

    def _fault(self, rule: dict[str, Any], action: dict[str, Any]) -> None:
        self.simulator.add_faults({**rule, "action": action})


def _without_first_artifact(document: dict[str, Any]) -> None:
    first = document["parts"][0]["artifact_id"]
    document["parts"] = [one for one in document["parts"] if one["artifact_id"] != first]


def _with_gap(document: dict[str, Any]) -> None:
    gone = document["parts"].pop()
    gap = {name: gone[name] for name in ("artifact_id", "part_id", "participant_id")}
    document["missing"].append({**gap, "error_code": "media_failed"})


def delete(ends: Ends, meeting: Meeting, scope: str) -> int:
    """Try as the Dag's task does."""
    from include.errors import CodedError
    from include.provider.deletion import delete_at_source

    for _ in range(TRIES):
        try:
            delete_at_source(ends, meeting.recording_id, meeting.folder, scope=scope, approved_by=None)
        except CodedError as error:
            if error.permanent:
                return REFUSED
        else:
            return DELETED
    return GAVE_UP


def kill_at(when: str, number: int) -> None:
    """Kill this process before or after the n-th call that it makes to anything outside."""
    from include.archive.stores.s3_wire import Wire
    from include.recall.client import RecallClient
    from include.recall.media import MediaClient

    count = -1

    def around(owner: Any, name: str) -> None:
        work = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            due = count == number
            if due and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return work(*args, **kwargs)
            finally:
                if due:
                    os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, counted)

    around(RecallClient, "_send")
    around(MediaClient, "_get_once")
    around(Wire, "_transmit")
    for name in FILE_CALLS:
        around(os, name)


def climb(world: World, when: str, step: int = 1) -> Iterator[list[str]]:
    """Kill at one call after the other until a deletion ends without; every other time, damage the archive then."""
    rung = 0
    while True:
        meeting = world.meeting(rung)
        code = world.run(meeting, kill=(when, rung))
        wrong = world.judge(meeting)
        if code != -signal.SIGKILL:
            if code != DELETED:
                wrong.append(f"it ended with {code}")
            yield wrong + world.done(meeting)
            return
        if rung // step % 2 and world.receipt(meeting) is None:
            before = world.asked()
            world.spoil(meeting, "object with a flipped bit")
            if world.run(meeting) != REFUSED or world.asked() != before:
                wrong.append("after the damage it went on")
        else:
            if world.run(meeting) != DELETED:
                wrong.append("the next run did not get through")
            wrong += world.judge(meeting) + world.done(meeting)
        yield [f"at call {rung}: {one}" for one in wrong]
        rung += step


def play(world: World, seed: int) -> tuple[str, list[str]]:
    """Play one schedule: something wrong, an answer to the deletion, and a kill in every other."""
    draw = random.Random(seed)
    what = (*HOPELESS, *HARMLESS * 3)[seed % (len(HOPELESS) + 3 * len(HARMLESS))]
    answer = draw.choice(list(ANSWERS))
    meeting = world.meeting(seed)
    world.spoil(meeting, what)
    if (action := ANSWERS[answer]) is not None:
        world.simulator.add_faults({"method": "DELETE", "times": draw.choice([1, 2]), "action": action})
    harmless = what in HARMLESS
    if draw.random() < 0.5:
        world.run(meeting, kill=(draw.choice(["before", "after"]), draw.randrange(90)))
    code = world.run(meeting)
    wrong = world.judge(meeting, harmless)
    name = what if not harmless else f"answered: {answer}"
    final = "page of a firewall"  # permanent: the task fails, and is run again by a person
    if harmless and code != DELETED and answer == final:
        world.run(meeting)  # the same answer once more at most
        code = world.run(meeting)
    if harmless:
        wrong += ([] if code == DELETED else [f"it ended with {code}"]) + world.judge(meeting) + world.done(meeting)
    elif code == DELETED or world.receipt(meeting) is not None:
        wrong.append("it says that it is deleted")
    return name, [f"seed {seed}: {one}" for one in wrong]


def campaign(schedules: int, step: int, tally: Tally, folder: Path) -> None:
    """Climb all ladders, then play schedules, half of them on each kind of store."""
    from include.simulator.process import running_simulator

    import_all()
    with ExitStack() as stack:
        simulator = stack.enter_context(running_simulator("--no-rate-limit"))
        server = stack.enter_context(StrictS3())
        worlds = [
            World(simulator, "file", folder / "archive", None, tally),
            World(simulator, "s3", folder, server, tally),
        ]
        for world in worlds:
            for when in ("before", "after"):
                for wrong in climb(world, when, step):
                    tally.tell(f"{world.kind}: killed {when} a call", wrong)
        for seed in range(schedules):
            world = worlds[seed % 2]
            if world.server is not None:
                world.server.reset()
            name, wrong = play(world, seed)
            tally.tell(name, wrong)


def import_all() -> None:
    """Import what every child needs, once."""
    import boto3
    import jsonschema  # noqa: F401

    import include.archive.manifest
    import include.provider.deletion  # noqa: F401

    boto3.session.Session()
    include.archive.manifest._validator()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.deletions", description="Kill deletions.")
    parser.add_argument("--schedules", type=int, default=300)
    parser.add_argument("--step", type=int, default=1, help="calls between two rungs of a ladder (%(default)s)")
    options = parser.parse_args()
    logging.getLogger("include").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    tally = Tally()
    try:
        campaign(options.schedules, options.step, tally, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{tally.table()}")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
