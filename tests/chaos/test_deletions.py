"""A short climb of ``python -m tests.chaos.deletions``: some kills on each kind of store, and every kind of damage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.deletions import ANSWERS, HOPELESS, Tally, campaign

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Tally:
    tally = Tally()
    folder: Path = tmp_path_factory.mktemp("deletions")
    campaign(60, 9, tally, folder)
    return tally


def test_nothing_unproven_is_ever_deleted(played: Tally) -> None:
    assert not played.failed, played.table()
    assert played.kills >= 20
    assert played.requests >= 100


def test_every_kind_was_met(played: Tally) -> None:
    assert set(HOPELESS) <= set(played.attempted)
    assert {name for name in played.attempted if name.startswith("answered")} == {f"answered: {one}" for one in ANSWERS}
    assert {f"{kind}: killed {when} a call" for kind in ("file", "s3") for when in ("before", "after")} <= set(
        played.attempted
    )
