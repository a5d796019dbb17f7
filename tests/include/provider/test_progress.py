"""What the log says of a part on its way into the archive."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from include.archive.copy import StoredPart
from include.provider import progress
from include.provider.progress import MIB, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

PART = StoredPart(
    key="participant=7/a/0.wav",
    bytes=200 * MIB,
    sha256="0" * 64,
    media_type="audio/wav",
    source_format="raw",
    source_bytes=200 * MIB,
    source_sha256="0" * 64,
    transferred=200 * MIB,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, progress.__name__)
    return lambda: [one.getMessage() for one in caplog.records if one.name == progress.__name__]


def copy(clock: Clock, *, size: int | None, total: int, pace: float) -> Progress:
    """Tell of each MiB of a copy of ``total`` bytes at ``pace`` bytes a second."""
    one = Progress(7, "0", clock=clock)
    for count in range(MIB, total + 1, MIB):
        clock.now += MIB / pace
        one(count, size)
    return one


def test_a_quick_part_is_one_line(said: Callable[[], list[str]]) -> None:
    one = copy(Clock(), size=200 * MIB, total=200 * MIB, pace=10 * MIB)
    assert one.done(PART) == pytest.approx(20.0)
    assert said() == ["Participant 7: stored 209715200 bytes in 20.00 s (10.00 MiB/s) as participant=7/a/0.wav"]


def test_a_long_part_is_told_about_each_tenth(said: Callable[[], list[str]]) -> None:
    copy(Clock(), size=200 * MIB, total=200 * MIB, pace=MIB / 4).done(PART)
    assert said()[0] == "Participant 7, part 0: 20.0 of 200.0 MiB, 10%, 0.25 MiB/s"
    assert len(said()) == 10, "the last tenth is the end"


def test_a_part_of_a_few_minutes_is_told_about_each_half_minute(said: Callable[[], list[str]]) -> None:
    copy(Clock(), size=200 * MIB, total=200 * MIB, pace=2 * MIB).done(PART)
    assert [line.split(", ")[2] for line in said()[:-1]] == ["30%", "60%", "90%"]


def test_a_part_of_unknown_length_is_told_about_each_half_minute(said: Callable[[], list[str]]) -> None:
    copy(Clock(), size=None, total=100 * MIB, pace=MIB)
    assert said() == [f"Participant 7, part 0: {30 * one}.0 MiB, 1.00 MiB/s" for one in (1, 2, 3)]


def test_a_copy_that_begins_anew_is_told_about_again(said: Callable[[], list[str]]) -> None:
    clock = Clock()
    one = copy(clock, size=200 * MIB, total=150 * MIB, pace=MIB)
    before = len(said())
    clock.now += 1
    one(MIB, 200 * MIB)
    clock.now += 40
    one(40 * MIB, 200 * MIB)
    assert len(said()) > before
