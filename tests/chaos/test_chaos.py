"""A short selection of ``make chaos``: one schedule at least of each class of fault, on both kinds of archive."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict

import pytest

from tests.chaos import campaign
from tests.chaos.campaign import Result, Tally
from tests.chaos.schedule import KINDS, Schedule, plan

pytestmark = pytest.mark.timeout(1500)

SELECTION = {
    "file": [
        "A01 401",
        "A07 429",
        "A12 cut JSON",
        "A17 next elsewhere",
        "A21 id null",
        "B07 one artifact failed",
        "C01 link expired",
        "C04 reset at 65537",
        "C16 redirect to loopback",
        "C23 ten cuts",
        "D20 disk full for ever",
        "D21 killed at the link",
        "E01 SIGKILL within a body",
        "E02 the old process lives on",
        "E11 the same again",
        "E14 one part fails for good",
        "G03 hostile names",
        "G04 hostile ids",
        "G02 debug logging of a failure",
    ],
    "s3": [
        "A06 409 on create",
        "B08 media expired",
        "C11 range ignored",
        "C26 host not allowed",
        "D01 SlowDown",
        "D02 denied",
        "D05 answer to PutObject lost",
        "D08 other content is there",
        "D09 two writers of a large part",
        "D11 killed in an upload",
        "D12 abort fails",
        "D13 store with no-conditions",
        "E10 stopped within a body",
    ],
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Play them all, side by side."""
    schedules = [
        plan(seed, stores=(store,), only=name)
        for store, names in SELECTION.items()
        for seed, name in enumerate(names, start=1000)
    ]
    # Each once, under a number of its own.
    for number, schedule in enumerate(schedules):
        schedule.seed = number
    results: list[Result] = []
    folder = tmp_path_factory.mktemp("chaos")
    campaign.play_all(iter(schedules), 2, folder, results.append, time.monotonic() + 1200)
    return {result.schedule.first: result for result in results}


@pytest.mark.parametrize("name", [name for names in SELECTION.values() for name in names])
def test_nothing_is_lost_and_the_run_says_the_truth(played: dict[str, Result], name: str) -> None:
    result = played[name]
    assert result.problems == []
    assert name in result.struck


def test_every_class_of_fault_is_in_the_selection() -> None:
    chosen = {name[0] for names in SELECTION.values() for name in names}
    assert chosen == {kind.name[0] for kind in KINDS}
    groups = {kind.name: kind.group for kind in KINDS}
    assert {groups[name] for names in SELECTION.values() for name in names} == set(groups.values())


def test_a_campaign_meets_every_kind() -> None:
    assert len(KINDS) >= 60
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    met = Counter(name for seed in range(2 * len(KINDS)) for name in plan(seed).kinds)
    assert all(met[kind.name] >= 2 for kind in KINDS)


@pytest.mark.parametrize("seed", [0, 17, 123, 100_003])
def test_a_seed_is_all_it_takes(seed: int) -> None:
    first, second = plan(seed), plan(seed)
    assert first == second
    assert Schedule(**json.loads(json.dumps(asdict(first)))) == first
    assert first != plan(seed + len(KINDS))


def test_faults_that_did_not_happen_are_not_counted_as_passed(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(verbose=True)
    schedule = Schedule(1, kinds=["A01 401", "G02 debug logging"])
    tally.tell(Result(schedule, [], {"A01 401"}, 0.1, campaign.ROOT))
    rows = {line[:44].strip(): line[44:].split() for line in tally.table().splitlines()}
    assert rows["A01 401"] == ["1", "1", "0", "0"]
    assert rows["G02 debug logging"] == ["1", "0", "0", "1"]
    assert rows["all"] == ["2", "1", "0", "1"]
