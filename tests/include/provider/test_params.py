from __future__ import annotations

from typing import Any

import pytest

from include.provider.errors import BadParamsError
from include.provider.params import given, refuse_contradictions


class Ti:
    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.mark.parametrize(
    "params",
    [
        {"bot_id": "b"},
        {"recording_id": "r", "bot_id": "", "meeting_url": None},
        {"meeting_url": "https://zoom.us/j/1", "bot_name": "n", "join_at": "2026-03-04T09:55:00Z"},
        {"bot_id": "b", "unknown": "ignored"},
    ],
)
def test_one_source_is_accepted(params: dict[str, Any]) -> None:
    refuse_contradictions({"params": params, "ti": Ti()})  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"bot_id": "", "recording_id": None},
        {"bot_id": "b", "recording_id": "r"},
        {"meeting_url": "https://zoom.us/j/1", "bot_id": "b"},
        {"bot_id": "b", "bot_name": "n"},
        {"recording_id": "r", "join_at": "2026-03-04T09:55:00Z"},
    ],
)
def test_contradictions_are_refused_and_reported(params: dict[str, Any]) -> None:
    ti = Ti()
    with pytest.raises(BadParamsError):
        refuse_contradictions({"params": params, "ti": ti})  # type: ignore[typeddict-item]
    assert ti.pushed["error"]["code"] == "bad_params"


@pytest.mark.parametrize("nothing", [None, "", "  ", "None"])
def test_nothing_is_given(nothing: Any) -> None:
    assert given(nothing) is None
