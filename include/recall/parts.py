"""From an artifact to its parts and their bytes, with fresh links whenever the old ones have run out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from include.recall.errors import (
    RecallLinkExpiredError,
    RecallMediaDeletedError,
    RecallMediaFailedError,
    RecallMediaForbiddenError,
    RecallMediaTimeoutError,
)
from include.recall.media import PartSource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from include.recall.client import RecallClient
    from include.recall.media import MediaClient
    from include.recall.models import AudioArtifact, AudioPart, SignedLink

MAX_FRESH_LINKS = 3
"""How often a refused link is replaced by a fresh one before the refusal is taken for an answer."""


@dataclass(frozen=True)
class Listing:
    """An artifact as it is now, with every part of it and fresh links.

    :param artifact: the artifact.
    :param parts: its parts in the order that Recall lists them, each with an id that no other one has.
    """

    artifact: AudioArtifact
    parts: tuple[AudioPart, ...]


def list_parts(
    client: RecallClient, media: MediaClient, artifact_id: str, *, artifact: AudioArtifact | None = None
) -> Listing:
    """List every part of an artifact.

    :param client: the API, for the artifact and its link.
    :param media: fetches what the link points to.
    :param artifact_id: the artifact.
    :param artifact: the artifact as just read, to save a call.
    :raises RecallMediaFailedError: the artifact failed.
    :raises RecallMediaDeletedError: the artifact is deleted.
    :raises RecallMediaTimeoutError: the artifact is not done, though it was before.
    :raises RecallMediaForbiddenError: fresh links are refused too.
    """
    for _ in range(MAX_FRESH_LINKS + 1):
        if artifact is None:
            artifact = client.get_audio_separate(artifact_id)
        try:
            return Listing(artifact, _with_own_ids(media.get_parts(_link_of(artifact))))
        except RecallLinkExpiredError:
            artifact = None
    raise RecallMediaForbiddenError(
        f"the parts list of artifact {artifact_id} was refused {MAX_FRESH_LINKS + 1} times, each time by a fresh link; "
        "check that the media still exists and that nothing between here and Recall blocks it"
    )


def open_part(client: RecallClient, media: MediaClient, artifact_id: str, part: AudioPart) -> PartSource:
    """Return a part as something that can be read, and read again from the middle, while its links come and go.

    :param client: the API, asked only when a link is refused.
    :param media: fetches the bytes.
    :param artifact_id: the artifact that the part belongs to.
    :param part: the part.
    """

    def refresh() -> SignedLink:
        return _same_part(list_parts(client, media, artifact_id).parts, part).download_url

    return PartSource(media, part.download_url, refresh, max_refreshes=MAX_FRESH_LINKS)


def _link_of(artifact: AudioArtifact) -> SignedLink:
    if artifact.status == "failed":
        raise RecallMediaFailedError(
            f"artifact {artifact.id} failed at Recall ({artifact.sub_code or 'no reason given'})"
        )
    if artifact.status == "deleted":
        raise RecallMediaDeletedError(f"artifact {artifact.id} was deleted at Recall before it was archived")
    if artifact.download_url is None:
        raise RecallMediaTimeoutError(
            f"artifact {artifact.id} is {artifact.status} again and has no link; run again later"
        )
    return artifact.download_url


def _with_own_ids(parts: Iterable[AudioPart]) -> tuple[AudioPart, ...]:
    """Drop entries that are listed twice, and tell apart different ones that share an id, which nothing forbids."""
    entries: dict[tuple[object, ...], AudioPart] = {}
    seen: set[str] = set()
    for part in parts:
        what = (part.id, part.participant.id, part.start_relative, part.duration)
        if what in entries:
            continue
        taken = part.id in seen
        seen.add(part.id)
        entries[what] = replace(part, id="/".join(map(str, what))) if taken else part
    return tuple(entries.values())


def _same_part(parts: Iterable[AudioPart], wanted: AudioPart) -> AudioPart:
    """Find a part in a new listing: by its id, or by who and when, since ids may be issued anew."""
    parts = tuple(parts)
    for part in parts:
        if part.id == wanted.id:
            return part
    for part in parts:
        if (part.participant.id, part.start_relative, part.duration) == (
            wanted.participant.id,
            wanted.start_relative,
            wanted.duration,
        ):
            return part
    raise RecallMediaForbiddenError(f"part {wanted.id} is no longer listed by Recall, and its link is refused")
