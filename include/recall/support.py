"""Which meeting platforms give separate audio, as Recall documents it."""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import urlsplit


class Support(NamedTuple):
    """Whether a platform gives separate audio after the meeting.

    :param answer: ``uncertain`` means that Recall's own pages disagree: send the bot, and don't count on audio.
    :param reason: one sentence for a person.
    """

    answer: Literal["yes", "uncertain", "no"]
    reason: str


_HOSTS = {
    "zoom.us": "zoom",
    "zoom.com": "zoom",
    "zoomgov.com": "zoom",
    "meet.google.com": "google_meet",
    "teams.microsoft.com": "microsoft_teams",
    "teams.microsoft.us": "microsoft_teams",
    "teams.cloud.microsoft": "microsoft_teams",
    "teams.live.com": "microsoft_teams_live",
    "webex.com": "webex",
    "goto.com": "goto_meeting",
    "gotomeeting.com": "goto_meeting",
    "gotomeet.me": "goto_meeting",
    "slack.com": "slack",
}

_TEAMS = Support("yes", "Recall records separate audio in Microsoft Teams; 4-core bots are recommended.")
_SLACK = Support("no", "Recall records no separate audio in Slack huddles.")

_SUPPORT = {
    "zoom": Support("yes", "Recall records separate audio on Zoom; older pages ask for the native bot."),
    "microsoft_teams": _TEAMS,
    "microsoft_teams_live": _TEAMS,
    "google_meet": Support(
        "uncertain", "Older pages of Recall exclude Google Meet, newer ones include it; 4-core bots are recommended."
    ),
    "webex": Support("no", "Recall records no separate audio on Webex."),
    "goto_meeting": Support("no", "Recall records no separate audio in GoTo Meeting."),
    "slack": _SLACK,
    "slack_authenticator": _SLACK,
    "slack_huddle_observer": _SLACK,
}


def platform_of(meeting_url: str) -> str | None:
    """Name the platform of a meeting's address in Recall's words; ``None`` if it is not a known one.

    :param meeting_url: the address that people join with.
    """
    try:
        host = (urlsplit(meeting_url.strip()).hostname or "").rstrip(".")
    except ValueError:
        return None
    return next(
        (platform for known, platform in _HOSTS.items() if host == known or host.endswith(f".{known}")),
        None,
    )


def separate_audio_support(platform: str | None) -> Support:
    """Look a platform up in Recall's support table.

    :param platform: Recall's word for it, as :func:`platform_of` gives it.
    """
    unknown = Support("uncertain", f"Recall's table doesn't say whether {platform or 'this platform'} is supported.")
    return _SUPPORT.get(platform or "", unknown)


def default_variant() -> dict[str, str]:
    """Return the kind of bot for each platform that is documented to give separate audio."""
    return {"zoom": "native", "google_meet": "web_4_core", "microsoft_teams": "web_4_core"}
