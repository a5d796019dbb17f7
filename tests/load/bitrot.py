"""A thousand bits flip and a hundred objects vanish, in an archive of a local folder and in one on S3.

    python -m tests.load.bitrot
    python -m tests.load.bitrot --recordings 10 --flips 40 --removed 8 --gone 1

Manifests are hit as well as audio, and of some recordings the source has lost everything. Then the archive is verified
and repaired as the Dag does it, chunk by chunk. The exit status is 0 if every damaged object was found, all were made
good that the source still has, byte for byte, and nothing else was touched: seen past the stores' own interfaces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.archive.copy import Stop
from include.archive.layout import MANIFEST_NAME, document_key
from include.archive.stores import open_store
from include.provider import verification
from include.provider.repair import Repairer
from include.recall.models import DOCUMENTS
from include.simulator.process import running_simulator
from tests.include.provider.world import BUCKET, World, s3_store
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator

RECORDINGS = 100
PARTS = 16
SIZE = 20_000


class Damage:
    """What was done to an archive, and how it was before."""

    def __init__(self, world: World, options: argparse.Namespace) -> None:
        draw = random.Random(options.seed)
        self.meetings = [
            world.meeting(people=4, parts=PARTS // 4, size=SIZE, created_at=f"2026-03-{1 + number % 28:02d}T09:00:00Z")
            for number in range(options.recordings)
        ]
        keys = [key for meeting in self.meetings for key in world.keys(meeting["folder"])]
        self.truth = {key: world.content(key) for key in keys}
        victims = draw.sample(keys, options.flips + options.removed)
        self.removed = set(victims[: options.removed])
        self.flipped = set(victims[options.removed :])
        for key in sorted(self.flipped):
            world.flip(key, draw.randrange(8 * len(self.truth[key])))
        for key in sorted(self.removed):
            world.remove(key)
        gone = draw.sample(self.meetings, options.gone)
        for meeting in gone:
            world.delete_at_the_source(meeting)
        self.gone = {meeting["folder"] for meeting in gone}
        self.state = world.state()
        self.damaged = {key: world.content(key) for key in self.flipped}
        if world.server is not None:
            world.written()

    def of(self, key: str) -> str:
        """Return the folder that a key belongs to."""
        return "/".join(key.split("/")[:2])

    def is_gone(self, key: str) -> bool:
        """Tell whether nobody can give an object back: the source keeps its lists when it has lost the audio."""
        return self.of(key) in self.gone and not (is_list(key) and self.of(key) not in self.unlisted)

    @property
    def unlisted(self) -> set[str]:
        """Folders whose manifest was hit."""
        return {self.of(key) for key in self.flipped | self.removed if key.endswith(MANIFEST_NAME)}

    @property
    def untold(self) -> set[str]:
        """Objects that vanished where no manifest is left to tell that they were there, nor the source.

        A list has no other proof than the manifest: what the source lists now may be another one.
        """
        return {
            key
            for key in self.removed
            if self.of(key) in self.unlisted
            and not key.endswith(MANIFEST_NAME)
            and (self.of(key) in self.gone or is_list(key))
        }


def is_list(key: str) -> bool:
    """Tell whether an object is one of the source's lists about a recording."""
    return key.rpartition("/")[2] in map(document_key, DOCUMENTS)


def verify(world: World, run: str) -> verification.Report:
    """Do what the Dag's tasks do."""
    task = verification.Task(run=run, stale_hours=-1.0)  # a folder without a manifest is nobody's work here
    chunks = verification.plan(world.store, recording_id=None, first_day=None, last_day=None)
    results = []
    for number, chunk in enumerate(chunks):
        key = f"{verification.FOLDER}/{run}/{number:02d}-{number:08x}.jsonl"
        repairer = Repairer(lambda: world.ends, stop=Stop())
        results.append(verification.verify_chunk(world.store, chunk, task, repairer, key=key, stop=Stop()))
    now = datetime.now(timezone.utc)
    return verification.write_report(world.store, task, scope={}, chunks=len(chunks), results=results, began_at=now)


def told(world: World, report: verification.Report) -> dict[str, str | None]:
    """Return what every file of the report says: key to what was done."""
    found = {}
    for key in report.document["details"]:
        for line in world.content(key).splitlines():
            for one in json.loads(line)["findings"]:
                place = f"{one['key']}/{MANIFEST_NAME}" if one["kind"] == "unsettled" else one["key"]
                found[place] = one["action"]
    return found


def judge(world: World, damage: Damage, found: dict[str, str | None]) -> list[str]:
    """Say all that is wrong."""
    problems = []
    victims = damage.flipped | damage.removed
    problems += [f"not found: {key}" for key in sorted(victims - found.keys() - damage.untold)]
    problems += [f"found without need: {key}" for key in sorted(found.keys() - victims)]
    after = {key: state for key, state in world.state().items() if not key.startswith("reports/")}
    for key in sorted(damage.truth):
        if key not in victims:
            if after.get(key) != damage.state[key]:
                problems.append(f"touched: {key}")
        elif key in damage.untold:
            if key in after:
                problems.append(f"came from nowhere: {key}")
        elif damage.is_gone(key):
            if found.get(key) is not None or after.get(key) != damage.state.get(key):
                problems.append(f"touched without a source: {key}")
        elif found.get(key) is None or not same(world, key, damage.truth[key], damage.untold):
            problems.append(f"not repaired: {key}")
    problems += [f"left behind: {key}" for key in sorted(after.keys() - damage.truth.keys())]
    if world.server is not None:
        written = {key for key in world.written() if not key.startswith("reports/")}
        problems += [f"written: {key}" for key in sorted(written - victims)]
    return problems


def same(world: World, key: str, truth: bytes, untold: set[str]) -> bool:
    """Tell whether an object is what it was; a rebuilt manifest may tell of other proofs, and names lists that went."""
    content = world.content(key)
    if not key.endswith(MANIFEST_NAME):
        return content == truth
    new, old = json.loads(content), json.loads(truth)
    for one in (*new["parts"], *old["parts"]):
        one.pop("verified_by")
    names = [one["name"] for one in old["documents"]]
    went = [name for name in names if key.replace(MANIFEST_NAME, document_key(name)) in untold]
    if went != [one["name"] for one in new.pop("documents_missing", [])]:
        return False
    old.pop("documents_missing", None)
    old["documents"] = [one for one in old["documents"] if one["name"] not in went]
    return bool(new == old)


def play(world: World, kind: str, options: argparse.Namespace) -> int:
    """Damage, verify, judge; return how many things are wrong."""
    damage = Damage(world, options)
    began = time.monotonic()
    report = verify(world, "20261122t020000z-000001")
    seconds = time.monotonic() - began
    found = told(world, report)
    problems = judge(world, damage, found)
    began = time.monotonic()
    again = told(world, verify(world, "20261122t030000z-000002"))
    left = set(filter(damage.is_gone, damage.flipped | damage.removed)) - damage.untold
    problems += [f"the second look says otherwise: {key}" for key in sorted(left ^ again.keys())]
    hit = sum(key.endswith(MANIFEST_NAME) for key in damage.flipped | damage.removed)
    print(
        f"{kind}: {len(damage.truth)} objects of {len(damage.meetings)} recordings; "
        f"{len(damage.flipped)} bits flipped, {len(damage.removed)} objects removed, {hit} manifests among them, "
        f"{len(damage.gone)} recordings gone at the source\n"
        f"  found {len(found)}, repaired {sum(action is not None for action in found.values())}, "
        f"left {sum(action is None for action in found.values())}, "
        f"past finding {len(damage.untold)}, in {seconds:.1f} s; a second look in {time.monotonic() - began:.1f} s; "
        f"wrong: {len(problems)}"
    )
    for problem in problems[:20]:
        print(f"  {problem}")
    return len(problems)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.bitrot", description="Damage an archive and repair it.")
    parser.add_argument("--recordings", type=int, default=RECORDINGS, help=f"of {PARTS} parts each (%(default)s)")
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--removed", type=int, default=100)
    parser.add_argument("--gone", type=int, default=5, help="recordings that the source has lost (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    wrong = 0
    with (
        running_simulator("--no-rate-limit") as simulator,
        Process(bucket=BUCKET, access_key="testing", secret_key="testing") as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        connect(simulator)
        wrong += play(World(simulator, open_store(Path(folder, "archive").as_uri()), None), "local folder", options)
        wrong += play(World(simulator, s3_store(server), server), "S3", options)
    return 1 if wrong else 0


def connect(simulator: RunningSimulator) -> None:
    connection: dict[str, Any] = simulator.connection
    os.environ["AIRFLOW_CONN_RECALL_DEFAULT"] = json.dumps(connection)
    os.environ["AIRFLOW_VAR_RECALL_REQUEST_SHARE"] = "100"


if __name__ == "__main__":
    sys.exit(main())
