"""What the company does not want to keep: filters on recordings that nobody asked for by name.

The sweep asks them before it starts a run, and the run asks them again with what only its bot and its participants
tell. Runs that a person starts are never filtered. What can't be known (a title, a length, a platform that Recall no
longer tells) leaves nothing out, save for consent: what was not given is not there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from include.provider import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from include.recall.models import Participant, Recording

AGREED = frozenset({"true", "yes", "1"})


@dataclass(frozen=True)
class Filters:
    """The deployment's filters, each a Variable. All of them must let a recording through.

    Patterns know ``*``, ``?`` and ``[...]``, and ignore case. A recording's metadata is its own, and its bot's for what
    it doesn't say itself.

    :param only_metadata: names with the patterns of which each value must match one.
    :param skip_metadata: names with patterns of which no value may match any.
    :param consent_metadata: name of the metadata that must be ``true``, ``yes`` or ``1``; empty for none.
    :param platforms: the platforms to archive, in Recall's words; empty for all.
    :param min_minutes: the shortest recording to archive.
    :param skip_titles: patterns that no title may match.
    :param only_participants: patterns; each participant's e-mail address, name or id must match one. Empty for all.
    :param skip_participants: patterns that no participant's e-mail address, name or id may match.
    """

    only_metadata: Mapping[str, Sequence[str]]
    skip_metadata: Mapping[str, Sequence[str]]
    consent_metadata: str
    platforms: Sequence[str]
    min_minutes: float
    skip_titles: Sequence[str]
    only_participants: Sequence[str]
    skip_participants: Sequence[str]

    @classmethod
    def read(cls) -> Filters:
        """Read the Variables.

        :raises BadSettingError: one of them can't mean what it says.
        """
        return cls(
            only_metadata=settings.ONLY_METADATA.get(),
            skip_metadata=settings.SKIP_METADATA.get(),
            consent_metadata=settings.CONSENT_METADATA.get(),
            platforms=settings.PLATFORMS.get(),
            min_minutes=settings.MIN_MINUTES.get(),
            skip_titles=settings.SKIP_TITLES.get(),
            only_participants=settings.ONLY_PARTICIPANTS.get(),
            skip_participants=settings.SKIP_PARTICIPANTS.get(),
        )

    def __bool__(self) -> bool:
        return any(vars(self).values())

    @property
    def asks_for_participants(self) -> bool:
        """Whether it matters who was there."""
        return bool(self.only_participants or self.skip_participants)

    @property
    def mark(self) -> str:
        """What tells these filters from others, without telling what they are."""
        return hashlib.sha256(repr(sorted(vars(self).items())).encode()).hexdigest()[:16]

    def reason_to_leave_out(
        self, recording: Recording, participants: Callable[[], Iterable[Participant]] | None = None
    ) -> str | None:
        """Say which Variable leaves a recording out, and why; ``None`` if it is wanted. No names, no titles.

        :param recording: as the API gives it; its platform is known only where its bot was read.
        :param participants: returns everyone who was there, asked last and only where it matters; without it, nobody
            is left out for who was there.
        """
        return (
            self._by_metadata({**recording.bot_metadata, **recording.metadata})
            or self._by_meeting(recording)
            or (self._by_people(participants()) if participants and self.asks_for_participants else None)
        )

    def _by_metadata(self, metadata: Mapping[str, str | None]) -> str | None:
        for name, patterns in self.only_metadata.items():
            if not _matches(metadata.get(name), patterns):
                return f"recall_only_metadata: its {name} is not what is asked for"
        for name, patterns in self.skip_metadata.items():
            if _matches(metadata.get(name), patterns):
                return f"recall_skip_metadata: {name}"
        if self.consent_metadata and (metadata.get(self.consent_metadata) or "").strip().lower() not in AGREED:
            return f"recall_consent_metadata: {self.consent_metadata} is not given"
        return None

    def _by_meeting(self, recording: Recording) -> str | None:
        if self.platforms and recording.platform and not _matches(recording.platform, self.platforms):
            return f"recall_platforms: {recording.platform}"
        minutes = minutes_of(recording)
        if minutes is not None and minutes < self.min_minutes:
            return f"recall_min_minutes: {minutes:.1f} minutes"
        if (number := _first(recording.title, self.skip_titles)) is not None:
            return f"recall_skip_titles: pattern {number}"
        return None

    def _by_people(self, participants: Iterable[Participant]) -> str | None:
        for one in participants:
            known = [text for text in (one.email, one.name, str(one.id)) if text]
            if any(_matches(text, self.skip_participants) for text in known):
                return f"recall_skip_participants: participant {one.id}"
            if self.only_participants and not any(_matches(text, self.only_participants) for text in known):
                return f"recall_only_participants: participant {one.id} is not on the list"
        return None


def minutes_of(recording: Recording) -> float | None:
    """Return how long a recording is; ``None`` while it goes on, or where Recall doesn't tell."""
    if recording.started_at is None or recording.completed_at is None:
        return None
    return max(0.0, (recording.completed_at - recording.started_at).total_seconds() / 60)


def _matches(text: str | None, patterns: Sequence[str]) -> bool:
    return _first(text, patterns) is not None


def _first(text: str | None, patterns: Sequence[str]) -> int | None:
    """Return the number, from 1, of the first pattern that a text matches."""
    if text is None:
        return None
    folded = text.strip().casefold()
    return next((number for number, one in enumerate(patterns, 1) if fnmatchcase(folded, one.casefold())), None)
