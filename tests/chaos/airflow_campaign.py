"""Harm runs of `archive_meeting` in a real Airflow, many at once, and check what each leaves behind.

``python -m tests.chaos.airflow_campaign --schedules 60`` prints a table of attempted, passed, failed and skipped
schedules by kind of fault. A schedule's number is its seed and decides all about it: ``SEED=17 python -m …`` runs that
one again. Schedules whose fault is their own run side by side; a fault of a shared component has a round to itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.airflow_faults import FLIGHTS, KINDS, Flight
from tests.chaos.airflow_world import MissedError, Secrets, World

if TYPE_CHECKING:
    from collections.abc import Callable

SHARE = {
    "E01": 10,
    "E02": 5,
    "E03": 4,
    "E04": 3,
    "E07": 4,
    "E09": 4,
    "E10": 5,
    "E11": 4,
    "E13": 3,
    "E14": 3,
    "E20": 3,
    "F01": 3,
    "F02": 3,
    "F05": 3,
    "B21": 3,
}
"""How often each kind is among sixty schedules."""

SIDE_BY_SIDE = 7


@dataclass(frozen=True)
class Schedule:
    """One schedule.

    :param seed: decides everything about it.
    """

    seed: int

    @property
    def kind(self) -> str:
        """The kind of fault."""
        return PLAN[self.seed % len(PLAN)][0]

    @property
    def archive(self) -> str:
        """Where it archives to: ``file`` or ``s3``."""
        return PLAN[self.seed % len(PLAN)][1]


@dataclass
class Round:
    """Schedules that are in flight together."""

    archive: str
    kind: str | None
    schedules: list[Schedule] = field(default_factory=list)

    def takes(self, one: Schedule) -> bool:
        """Tell whether a schedule can join."""
        kind = KINDS[one.kind]
        if one.archive != self.archive or len(self.schedules) >= SIDE_BY_SIDE:
            return False
        if kind.harm is not None or self.kind is not None:
            return one.kind == self.kind
        return not any(kind.spoils and KINDS[each.kind].spoils for each in self.schedules)


def _plan() -> list[tuple[str, str]]:
    """Spread the kinds evenly, each to both archives in turn; shared kinds keep to one archive per round of sixty."""
    slots = [((number + 0.5) / count, kind, number) for kind, count in SHARE.items() for number in range(count)]
    plan = []
    for _, kind, number in sorted(slots):
        shared = KINDS[kind].harm is not None
        first = sorted(KINDS).index(kind) % 2
        plan.append((kind, ("file", "s3")[(first + (0 if shared else number)) % 2]))
    return plan


PLAN = _plan()


def rounds(schedules: list[Schedule]) -> list[Round]:
    """Put schedules together that don't disturb each other."""
    made: list[Round] = []
    for one in schedules:
        found = next((each for each in made if each.takes(one)), None)
        if found is None:
            found = Round(one.archive, one.kind if KINDS[one.kind].harm is not None else None)
            made.append(found)
        found.schedules.append(one)
    return made


class Campaign:
    """Runs schedules and keeps the score.

    :param world: where they run.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.secrets = Secrets(world)
        self.score: dict[str, Counter[str]] = {}
        self.troubles: list[str] = []
        self._number = 0

    def fly(self, one: Round) -> None:
        """Run a round, then search what it left for secrets."""
        self._number += 1
        began = time.monotonic()
        self.world.use_archive(one.archive, self._number)
        flight = Flight(len(one.schedules))
        FLIGHTS[id(self.world)] = flight
        harm = KINDS[one.kind].harm if one.kind is not None else None
        with ThreadPoolExecutor(len(one.schedules)) as pool:
            waiting = [pool.submit(self._attempt, each) for each in one.schedules]
            if harm is not None:
                harming = ThreadPoolExecutor(1)
                harmed = harming.submit(harm, self.world, random.Random(one.schedules[0].seed), flight)
            for attempt in waiting:
                attempt.result()
            flight.over.set()
        if harm is not None:
            error = harmed.exception()
            harming.shutdown()
            self.world.revive()
            if error is not None:
                for each in one.schedules:
                    self.count(each.kind, "skipped" if isinstance(error, MissedError) else "failed", "passed")
                self.note(f"{one.kind} (seeds {[each.seed for each in one.schedules]})", error)
        self._guard("S2", self._nothing_left)
        self._guard("G01/G02", self._no_secrets)
        self.world.free()
        seeds = " ".join(f"{each.kind}:{each.seed}" for each in one.schedules)
        print(f"round {self._number} ({one.archive}) {seeds}: {time.monotonic() - began:.0f} s", flush=True)

    def _attempt(self, schedule: Schedule) -> None:
        self.count(schedule.kind, "attempted")
        try:
            self._run(schedule)
        except MissedError as error:
            self.count(schedule.kind, "skipped")
            self.note(f"{schedule.kind} SEED={schedule.seed} skipped", error)
        except Exception as error:
            self.count(schedule.kind, "failed")
            self.note(f"{schedule.kind} SEED={schedule.seed}", error)
        else:
            self.count(schedule.kind, "passed")

    def _run(self, schedule: Schedule) -> None:
        """Run a schedule, anew where it came too late for its fault and is alone with it."""
        kind = KINDS[schedule.kind]
        for _ in range(2 if kind.harm is None else 0):
            with contextlib.suppress(MissedError):
                kind.run(self.world, random.Random(schedule.seed))
                return
        kind.run(self.world, random.Random(schedule.seed))

    def _guard(self, kind: str, check: Callable[[], None]) -> None:
        self.count(kind, "attempted")
        try:
            check()
        except Exception as error:
            self.count(kind, "failed")
            self.note(f"{kind} after round {self._number}", error)
        else:
            self.count(kind, "passed")

    def _nothing_left(self) -> None:
        self.world.await_zombies()
        uploads = self.world.s3.state()["uploads"]
        assert not uploads, f"open uploads: {[one['key'] for one in uploads]}"
        partial = [str(path) for path in (self.world.folder / "archives").rglob(".tmp*")]
        assert not partial, f"partial files: {partial}"

    def _no_secrets(self) -> None:
        hits = self.secrets.hits()
        assert not hits, f"secrets: {hits}"

    def count(self, kind: str, what: str, instead: str | None = None) -> None:
        score = self.score.setdefault(kind, Counter())
        if instead is not None:
            score[instead] -= 1
        score[what] += 1

    def note(self, where: str, error: BaseException) -> None:
        text = str(error) or "".join(traceback.format_exception(error)[-3:])
        self.troubles.append(f"{where}: {type(error).__name__}: {text[:1500]}")
        print(self.troubles[-1], flush=True)

    def table(self) -> str:
        """Give the score as text."""
        words = ("attempted", "passed", "failed", "skipped")
        lines = [f"{'':9}{''.join(f'{word:>10}' for word in words)}"]
        titles = {**{kind: one.title for kind, one in KINDS.items()}, "S2": "nothing left after a round"}
        titles["G01/G02"] = "no secret in what a round left, at level DEBUG"
        titles["processes"] = "no process left at the end"
        for kind in sorted(self.score):
            score = self.score[kind]
            lines.append(f"{kind:9}{''.join(f'{score[word]:10}' for word in words)}  {titles[kind]}")
        total: Counter[str] = sum((self.score[kind] for kind in KINDS if kind in self.score), Counter())
        lines.append(f"{'all kinds':9}{''.join(f'{total[word]:10}' for word in words)}")
        return "\n".join(lines)


def main() -> int:
    """Run the campaign; the exit status is 0 only if every schedule passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.airflow_campaign")
    parser.add_argument("--schedules", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="seed of the first schedule")
    parser.add_argument("--kinds", help="only these, separated by commas")
    parser.add_argument("--folder", type=Path, help="keep all that is left behind here")
    options = parser.parse_args()
    if seed := os.environ.get("SEED"):
        chosen = [Schedule(int(seed))]
    else:
        wanted = set(options.kinds.split(",")) if options.kinds else set(KINDS)
        fitting = (one for one in map(Schedule, itertools.count(options.first)) if one.kind in wanted)
        chosen = list(itertools.islice(fitting, options.schedules))
    with contextlib.ExitStack() as resources:
        folder = options.folder or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        campaign = Campaign(resources.enter_context(World(folder)))
        for one in rounds(chosen):
            campaign.fly(one)
        world = campaign.world
        world.__exit__()
        left = world.processes()
        campaign.count("processes", "attempted")
        campaign.count("processes", "failed" if left else "passed")
    print("\n".join(["", *campaign.troubles, "", campaign.table()]))
    print(f"searched {campaign.secrets.searched / 1e6:.0f} MB for secrets, {campaign.secrets.links} links known")
    bad = any(score["failed"] or score["skipped"] for score in campaign.score.values())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
