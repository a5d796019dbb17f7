from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.archive import layout

PATTERN = re.compile(r"^[a-z0-9][a-z0-9/_.=-]{0,899}$")
NAMES = [
    "../../etc/passwd",
    "..\\..",
    "/abs",
    "C:\\x",
    "a\0b",
    "a\r\nb",
    "\u202e",
    "\ufeff",
    "\ud800",
    "x" * 10_000,
    "\U0001f600",
    "\u00e9",
    "e\u0301",
    "CON",
    ".",
    "..",
    "",
    "a.b",
    "a/b",
    "sha256-" + "0" * 64,
    "A",
    "a" * 101,
]
ids = st.one_of(
    st.text(max_size=40), st.sampled_from(NAMES), st.uuids().map(str), st.from_regex(r"[a-zA-Z0-9._-]{1,8}")
)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**63), 2**63), ids, ids, ids)
def test_keys_match_the_pattern(participant: int, artifact: str, part: str, recording: str) -> None:
    folder = layout.recording_folder(datetime(2026, 3, 4, tzinfo=timezone.utc), recording)
    key = f"{folder}/{layout.part_stem(participant, artifact, part)}.wav"
    assert PATTERN.fullmatch(key)
    assert layout.is_key(key)
    assert layout.is_recording_folder(folder)
    assert ".." not in key
    assert len(key.split("/")) == 5
    assert max(len(segment) for segment in key.split("/")) <= 200


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(), ids, ids), st.tuples(st.integers(), ids, ids))
def test_keys_are_injective(one: tuple[int, str, str], other: tuple[int, str, str]) -> None:
    assert (layout.part_stem(*one) == layout.part_stem(*other)) == (one == other)


def test_hostile_ids_are_injective_and_cannot_be_forged() -> None:
    hashed = [layout.safe_id(name) for name in NAMES]
    twice = [layout.safe_id(name) for name in hashed]
    assert len({*hashed, *twice}) == len(hashed) + len(twice)


@pytest.mark.parametrize(
    ("one", "other"), [("AB", "Ab"), ("\u00c9", "\u00e9"), ("\u00e9", "e\u0301"), ("a b", "a  b"), ("x ", " x")]
)
def test_ids_that_look_alike_stay_apart(one: str, other: str) -> None:
    assert layout.safe_id(one) != layout.safe_id(other)


def test_plain_ids_stay_readable() -> None:
    assert layout.part_stem(100, "aa0a3c1e-0b6e", "part-000001") == "participant=100/aa0a3c1e-0b6e/part-000001"


def test_the_day_is_that_of_utc() -> None:
    late = datetime(2026, 3, 4, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    assert layout.recording_folder(late, "rec-1") == "dt=2026-03-05/recording=rec-1"
    assert layout.recording_folder(datetime(987, 1, 2, tzinfo=timezone.utc), "r") == "dt=0987-01-02/recording=r"
    with pytest.raises(ValueError, match="time zone"):
        layout.recording_folder(datetime(2026, 3, 4), "rec-1")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/../b", "a/./b", "A", "a b", "a/", "a\n", "ä", "a" * 901])
def test_other_keys_are_refused(key: str) -> None:
    assert not layout.is_key(key)


@pytest.mark.parametrize(
    "folder",
    [
        "",
        "dt=2026-03-04",
        "dt=2026-03-04/",
        "dt=2026-03-04/recording=",
        "dt=2026-03-04/recording=a/",
        "dt=2026-03-04/recording=a/participant=1",
        "dt=2026-03-04/recording=..",
        "dt=2026-03-04/recording=a\n",
        "dt=2026-3-4/recording=a",
        "/dt=2026-03-04/recording=a",
        "x/dt=2026-03-04/recording=a",
        "dt=\u0662026-03-04/recording=a",
    ],
)
def test_other_folders_are_no_recording_s(folder: str) -> None:
    assert not layout.is_recording_folder(folder)
