"""The budget that all processes of a machine go by: real processes, one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from include.recall.budget import LIMITS, WINDOW, FileBudget

ROOT = Path(__file__).resolve().parents[3]

TAKE = """
import sys, time
from pathlib import Path
from include.recall.budget import FileBudget

budget = FileBudget("https://recall.example key", float(sys.argv[2]), folder=Path(sys.argv[1]))
print("ready", flush=True)
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
while budget.take("list", 0.0) == 0.0:
    print("taken", flush=True)
    time.sleep(float(sys.argv[4]))
"""


class Clock:
    def __init__(self, now: float = 5000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "budget"


def make(folder: Path, clock: Clock, share: float = 0.5, workspace: str = "https://recall.example key") -> FileBudget:
    return FileBudget(workspace, share, folder=folder, clock=clock)


def test_no_window_ever_holds_more_than_the_share(folder: Path, clock: Clock) -> None:
    budget = make(folder, clock)
    starts = []
    for number in range(300):
        clock.now += 0.37 if number % 50 else 20.0
        if (wait := budget.take("list", 120.0)) <= 120.0:
            starts.append(clock.now + wait)
    assert len(starts) > 100
    for start in starts:
        assert len([one for one in starts if start <= one < start + 60]) <= LIMITS["list"] * 0.5


def test_the_whole_share_can_be_used(folder: Path, clock: Clock) -> None:
    budget = make(folder, clock, share=1.0)
    assert [budget.take("retrieve", 0.0) for _ in range(300)] == [0.0] * 300
    assert budget.take("retrieve", 0.0) == pytest.approx(WINDOW)
    assert budget.take("list", 0.0) == 0.0
    clock.now += WINDOW
    assert budget.take("retrieve", 0.0) == 0.0


def test_what_would_wait_too_long_is_not_entered(folder: Path, clock: Clock) -> None:
    budget = make(folder, clock, share=1 / 60)
    assert budget.take("list", 0.0) == 0.0
    assert [budget.take("list", 10.0) for _ in range(5)] == [pytest.approx(WINDOW)] * 5
    assert budget.take("list", 100.0) == pytest.approx(WINDOW)
    assert budget.take("list", 200.0) == pytest.approx(2 * WINDOW)


def test_a_pause_holds_for_everyone_and_for_its_kind_alone(folder: Path, clock: Clock) -> None:
    make(folder, clock).pause("list", 30.0)
    make(folder, clock).pause("list", 5.0)
    assert make(folder, clock).take("list", 0.0) == pytest.approx(30.0)
    assert make(folder, clock).take("retrieve", 0.0) == 0.0
    assert make(folder, clock, workspace="another").take("list", 0.0) == 0.0
    clock.now += 30.0
    assert make(folder, clock).take("list", 0.0) == 0.0


def test_a_machine_started_anew_is_not_held_up(folder: Path, clock: Clock) -> None:
    """Its monotonic clock begins again, and what was written before lies in the future."""
    clock.now = 9_000_000.0
    budget = make(folder, clock)
    for _ in range(30):
        budget.take("list", 0.0)
    budget.pause("list", 3600)
    clock.now = 10.0
    assert budget.take("list", 0.0) == 0.0


def test_a_wall_clock_that_jumps_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = FileBudget("w", 1 / 60, folder=folder)
    began = time.monotonic()
    assert budget.take("list", 0.0) == 0.0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    wait = budget.take("list", 0.0)
    assert WINDOW - (time.monotonic() - began) <= wait <= WINDOW


@pytest.mark.parametrize("body", ["", "{", "[]", "7", '{"list": {"sent": "x"}}', '{"list": 5}', "\xff"])
def test_a_file_that_was_cut_short_is_begun_anew(folder: Path, clock: Clock, body: str) -> None:
    budget = make(folder, clock)
    budget.take("list", 0.0)
    (file,) = folder.iterdir()
    file.write_bytes(body.encode("latin-1"))
    assert [budget.take("list", 0.0) for _ in range(30)] == [0.0] * 30
    assert budget.take("list", 0.0) > 0


def test_the_file_is_private_and_holds_no_key(folder: Path, clock: Clock) -> None:
    budget = make(folder, clock, workspace="https://recall.example\ncanary-key")
    budget.take("list", 0.0)
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert "canary-key" not in file.name + file.read_text()
    assert set(json.loads(file.read_text())) == {"list"}


@pytest.mark.parametrize("how", ["open to others", "a link", "a file"])
def test_a_folder_that_is_not_ours_alone_is_not_used(tmp_path: Path, clock: Clock, how: str) -> None:
    folder = tmp_path / "budget"
    if how == "a file":
        folder.write_text("")
    elif how == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    budget = make(folder, clock, share=1 / 60)
    budget.pause("list", 30)
    assert [budget.take("list", 0.0), budget.take("list", 0.0)] == [0.0, 0.0]
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == ([folder] if how == "a file" else [])


def start(folder: Path, share: float, go: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    """Start a process that takes what it can get as soon as ``go`` is there."""
    words = [sys.executable, "-c", TAKE, str(folder), str(share), str(go), str(pause)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def rest_of(process: subprocess.Popen[str]) -> int:
    """Return how much more a process takes until it ends."""
    assert process.stdout is not None
    with process:
        # Not `communicate`, which leaves out what `readline` has read ahead.
        return len(process.stdout.readlines())


def test_processes_share_it(folder: Path, tmp_path: Path) -> None:
    """Many at once get exactly the share."""
    go = tmp_path / "go"
    processes = [start(folder, 20.0, go) for _ in range(4)]
    go.touch()
    assert sum(map(rest_of, processes)) == 20 * LIMITS["list"]


def test_one_that_is_killed_at_work_blocks_nobody(folder: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    victim = start(folder, 20.0, go, pause=0.02)
    assert victim.stdout is not None
    for _ in range(100):
        victim.stdout.readline()
    victim.kill()
    taken = 100 + rest_of(victim)
    assert taken < 20 * LIMITS["list"]
    taken += rest_of(start(folder, 20.0, go))
    # It may have entered a request that it did not live to tell of.
    assert 20 * LIMITS["list"] - 1 <= taken <= 20 * LIMITS["list"]
