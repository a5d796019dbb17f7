"""Faults from `python -m tests.chaos.airflow_campaign`: those of single runs, side by side, in the shared Airflow."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos import airflow_faults
from tests.chaos.airflow_world import API_KEY, STORAGE_SECRET, Secrets, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from include.simulator.process import RunningSimulator
    from scripts.local_airflow import LocalAirflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

SCHEDULES: dict[str, Callable[[World, random.Random], None]] = {
    "task killed": airflow_faults.kill_task_in_transfer,
    "cleared at work": partial(airflow_faults.intervene, clear=True),
    "cleared after success": airflow_faults.clear_after_success,
    "triggered twice at once": airflow_faults.trigger_twice,
    "one part of fifty lost": partial(airflow_faults.lose_one_part, people=2),
}


@pytest.fixture(scope="module")
def played(airflow: LocalAirflow, simulator: RunningSimulator, archive: Path) -> dict[str, Future[None]]:
    world = World.around(airflow, simulator, archive.as_uri())
    with ThreadPoolExecutor(len(SCHEDULES)) as pool:
        return {name: pool.submit(run, world, random.Random(name)) for name, run in SCHEDULES.items()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_archive_is_right_whatever_happens(name: str, played: dict[str, Future[None]]) -> None:
    played[name].result()


LINK = "https://media.example/a/0-0?AWSAccessKeyId=SIMULATOR&Signature=Ab%2Bc0dEf%2FgHiJkLmNoPqRsTuVwX%3D&Expires=1"
TOKEN = "https://api.example/download?token=eyJrIjogInBhcnRzIiwgInQiOiAiYSJ9.0123456789abcdef"


@pytest.mark.parametrize(
    "left",
    [
        f"key {API_KEY}",
        f"secret={STORAGE_SECRET}",
        LINK,
        TOKEN,
        "Ab%2Bc0dEf%2FgHiJkLmNoPqRsTuVwX",
        "x Ab+c0dEf/gHiJkLmNoPqRsTuVwX= y",
        "Sig%3DAb%2Bc0dEf%2FgHiJkLmNoP",
        "eyJrIjogInBhcnRzIiwgInQiOiAiYSJ9.0123",
    ],
)
def test_a_secret_that_is_left_is_found(left: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "links.txt").write_text(f"{LINK}\n{TOKEN}\n")
    log = tmp_path / "home" / "task.log"
    log.write_text("nothing but https://media.example/a/0-0?Signature=[hidden]&token=[hidden]\n")
    world: Any = SimpleNamespace(
        folder=tmp_path,
        links=tmp_path / "links.txt",
        airflow=SimpleNamespace(home=tmp_path / "home"),
        s3=SimpleNamespace(state=lambda: {"objects": {}}),
        processes=list,
    )
    secrets = Secrets(world)
    assert secrets.hits() == []
    log.write_text(f"{left}, and more\n")
    assert secrets.hits()
