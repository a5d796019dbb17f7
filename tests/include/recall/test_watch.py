from __future__ import annotations

import pytest

from include.recall.watch import poll_interval


@pytest.mark.parametrize(("seconds", "pause"), [(0, 5), (40, 5), (80, 10), (480, 60), (30_000, 60)])
def test_looks_become_rare(seconds: float, pause: float) -> None:
    assert poll_interval(seconds) == pause


def test_a_long_meeting_costs_few_looks() -> None:
    now, looks = 0.0, 0
    while now < 8 * 3600:
        now, looks = now + poll_interval(now), looks + 1
    assert looks < 540
