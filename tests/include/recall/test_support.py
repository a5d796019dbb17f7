from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.recall.support import default_variant, platform_of, separate_audio_support


@pytest.mark.parametrize(
    ("url", "platform"),
    [
        ("https://us02web.zoom.us/j/123?pwd=abc", "zoom"),
        ("https://acme.zoom.com/j/123", "zoom"),
        ("https://meet.google.com/abc-defg-hij", "google_meet"),
        ("https://teams.microsoft.com/l/meetup-join/19%3ameeting/0", "microsoft_teams"),
        (" https://TEAMS.microsoft.com./meet/1 ", "microsoft_teams"),
        ("https://teams.live.com/meet/1", "microsoft_teams_live"),
        ("https://acme.webex.com/meet/x", "webex"),
        ("https://meet.goto.com/123", "goto_meeting"),
        ("https://app.slack.com/huddle/T1/C1", "slack"),
        ("https://notzoom.us/j/1", None),
        ("https://zoom.us.evil.example/j/1", None),
        ("https://google.com/", None),
        ("not a url", None),
        ("https://[", None),
        ("", None),
    ],
)
def test_platform_of(url: str, platform: str | None) -> None:
    assert platform_of(url) == platform


@pytest.mark.parametrize(
    ("platform", "answer"),
    [
        ("zoom", "yes"),
        ("microsoft_teams", "yes"),
        ("google_meet", "uncertain"),
        ("webex", "no"),
        ("goto_meeting", "no"),
        ("slack", "no"),
        ("hologram", "uncertain"),
        (None, "uncertain"),
    ],
)
def test_separate_audio_support(platform: str | None, answer: str) -> None:
    support = separate_audio_support(platform)
    assert support.answer == answer
    assert support.reason.endswith(".")


def test_every_supported_platform_has_a_variant() -> None:
    assert default_variant() == {"zoom": "native", "google_meet": "web_4_core", "microsoft_teams": "web_4_core"}


@given(st.text(max_size=60))
@settings(max_examples=50)
def test_no_text_breaks_platform_of(url: str) -> None:
    assert platform_of(url) in (None, *(platform_of(f"https://{host}/") for host in ("zoom.us", "meet.google.com")))
