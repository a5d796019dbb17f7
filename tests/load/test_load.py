"""The two load scripts, in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1000)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "words",
    [
        ("tests.load.waiting", "--meetings", "60", "--seconds", "40"),
        ("tests.load.finishing", "--meetings", "6", "--workers", "2", "--spread", "3"),
    ],
    ids=["waiting", "finishing"],
)
def test_nothing_is_refused_and_nobody_is_left_out(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "429s 0" in done.stdout


def test_an_archive_heals() -> None:
    """`tests.load.bitrot` in small; the thousand bits are for those who have a minute."""
    words = ("tests.load.bitrot", "--recordings", "8", "--flips", "40", "--removed", "8", "--gone", "1")
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("wrong: 0") == 2
