"""Where things are kept: pure functions from ids and dates to keys.

Keys are made of ids only. An id that is not already safe is replaced by its hash, so that whatever the source sends,
no key leaves its folder, no two ids share one key, and no name or address of a person is ever part of one.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone

MANIFEST_NAME = "manifest.json"
"""Name of the manifest within its recording's folder."""

LOST_FOLDER = "lost"
"""Where the archive keeps a note of each recording that was lost before it was archived."""

PAGE_NAME = "meeting.html"
"""Name of the page that shows a recording's manifest to people, beside it."""

SPEAKERS_NAME = "speakers.rttm"
"""Name, within its recording's folder, of what says who spoke when; see :mod:`include.archive.speakers`."""

DERIVED_FOLDER = "derived"
"""Folder, within its recording's, of whatever was made from what is archived and can be made again."""

_SAFE_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_KEY = re.compile(r"[a-z0-9][a-z0-9/_.=-]{0,899}")
_FOLDER = re.compile(r"dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/recording=[a-z0-9][a-z0-9_-]{0,99}")
_HASHED = "sha256-"


def safe_id(value: str) -> str:
    """Return the id itself where it can be part of a key, and its hash where it cannot.

    Different ids always give different results: the hashed form is itself never taken as it stands.

    :param value: any string, lone surrogates included.
    """
    if _SAFE_ID.fullmatch(value) and not value.startswith(_HASHED):
        return value
    return _HASHED + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


def recording_folder(created_at: datetime, recording_id: str) -> str:
    """Return the folder of one recording, relative to the archive.

    :param created_at: the recording's own creation time, with its time zone.
    :param recording_id: the recording's id.
    :raises ValueError: when ``created_at`` has no time zone, because its UTC day is then unknown.
    """
    if created_at.utcoffset() is None:
        raise ValueError("created_at needs a time zone")
    return f"dt={created_at.astimezone(timezone.utc).date().isoformat()}/recording={safe_id(recording_id)}"


def is_recording_folder(folder: str) -> bool:
    """Tell whether a string may be what :func:`recording_folder` returns."""
    return _FOLDER.fullmatch(folder) is not None


def document_key(name: str) -> str:
    """Return the key of one of the source's lists about a recording, relative to the recording's folder.

    :param name: such as ``participants``.
    """
    return f"{safe_id(name)}.json"


def is_derived(key: str) -> bool:
    """Tell whether an object was made from what is archived: it is in no manifest, and losing it loses nothing.

    :param key: relative to the recording's folder.
    """
    return key in {PAGE_NAME, SPEAKERS_NAME} or key.startswith(f"{DERIVED_FOLDER}/")


def participant_folder(participant_id: int) -> str:
    """Return the folder of one participant's parts, relative to the recording's folder."""
    return f"participant={safe_id(str(participant_id))}"


def part_stem(participant_id: int, artifact_id: str, part_id: str) -> str:
    """Return the key of one part without its extension, relative to its recording's folder.

    The extension follows from what the bytes turn out to be, see :mod:`include.archive.audio`.

    :param participant_id: the participant's id, unique within the recording only.
    :param artifact_id: the id of the separate-audio artifact.
    :param part_id: the part's id, unique within the artifact only.
    """
    return f"{participant_folder(participant_id)}/{safe_id(artifact_id)}/{safe_id(part_id)}"


def is_key(key: str) -> bool:
    """Tell whether a string may name an object: lower-case, bounded, no path segment empty or beginning with a dot."""
    return _KEY.fullmatch(key) is not None and not any(part[:1] in {"", "."} for part in key.split("/"))
