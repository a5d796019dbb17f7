"""Who spoke when, as RTTM, made from nothing but what is archived.

One line stands for one stretch of speech of one participant, named by id. The stretches are those of the source's
speaker timeline; where that is not archived, or holds none that can be read, those of which there is audio, which may
hold silence. Seconds count from the recording's start: what lies before it is cut off, since RTTM has no negative
times. Stretches of one participant that overlap or touch are one. A stretch that is left open lasts until the last
moment that anything else in the recording is known of.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from include.archive.beside import Beside
from include.archive.errors import IntegrityError, ObjectMissingError
from include.archive.layout import SPEAKERS_NAME, safe_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from include.archive.manifest import Manifest
    from include.archive.stores import Store

log = logging.getLogger(__name__)

TIMELINE = "speaker_timeline"
"""The document that tells who spoke when."""

UNKNOWN_SPEAKER = -1
"""Who spoke where the source names nobody."""


@dataclass(frozen=True, order=True)
class Stretch:
    """One participant speaking, in seconds from the recording's start."""

    start: float
    end: float
    participant_id: int


@dataclass(frozen=True)
class Speech:
    """Who spoke when in one recording.

    :param source: ``speaker_timeline`` or ``parts``: what it was read from.
    :param stretches: in order.
    :param cut: how many began before the recording, and lost what lay there.
    :param left_out: how many were without length, wholly before the recording, or not readable.
    """

    source: str
    stretches: tuple[Stretch, ...]
    cut: int = 0
    left_out: int = 0

    def seconds(self) -> dict[int, float]:
        """Return how long each participant spoke."""
        spoken: dict[int, float] = {}
        for one in self.stretches:
            spoken[one.participant_id] = round(spoken.get(one.participant_id, 0.0) + one.end - one.start, 3)
        return spoken


def speech(store: Store, folder: str, manifest: Manifest) -> Speech:
    """Read who spoke when in a settled recording.

    :param folder: the recording's folder.
    """
    parts = [
        (part.participant_id, part.start_relative_seconds, part.start_relative_seconds + part.duration_seconds)
        for part in manifest.parts
    ]
    timeline = _timeline(store, folder, manifest)
    known = [end for _, _, end in (*parts, *timeline) if end is not None]
    found = _speech(TIMELINE, timeline, max(known, default=0.0))
    return found if found.stretches else _speech("parts", parts, 0.0)


def to_rttm(recording_id: str, stretches: Iterable[Stretch]) -> bytes:
    """Return stretches as NIST's Rich Transcription Time Marked text, a ``SPEAKER`` line for each."""
    name = safe_id(recording_id)
    return "".join(
        f"SPEAKER {name} 1 {one.start:.3f} {one.end - one.start:.3f} <NA> <NA> {one.participant_id} <NA> <NA>\n"
        for one in stretches
    ).encode("ascii")


def _rttm(store: Store, folder: str, manifest: Manifest) -> bytes | None:
    found = speech(store, folder, manifest)
    if found.cut or found.left_out:
        log.info(
            "%s: %d stretches of the %s began before the recording and are cut, %d are left out",
            folder,
            found.cut,
            found.source,
            found.left_out,
        )
    return to_rttm(manifest.recording.id, found.stretches) if found.stretches else None


SPEAKERS = Beside(SPEAKERS_NAME, "text/plain", _rttm, mark=b"SPEAKER ")
"""The RTTM of a settled recording; there is none where nobody spoke."""

write, renew = SPEAKERS.write, SPEAKERS.renew


def _speech(source: str, told: Iterable[tuple[int, float, float | None]], last: float) -> Speech:
    """Put stretches in order and one participant's together.

    :param last: where one without an end ends.
    """
    cut = left_out = 0
    spans: dict[int, list[tuple[float, float]]] = {}
    for who, start, end in told:
        # Whole milliseconds, which is what is written: so no two stretches overlap by rounding.
        begin, until = round(max(0.0, start), 3), round(last if end is None else end, 3)
        if not begin < until:
            left_out += 1
            continue
        cut += start < 0
        spans.setdefault(who, []).append((begin, until))
    merged = []
    for who, some in spans.items():
        start, end = min(some)
        for begin, until in sorted(some):
            if begin > end:
                merged.append(Stretch(start, end, who))
                start, end = begin, until
            end = max(end, until)
        merged.append(Stretch(start, end, who))
    return Speech(source, tuple(sorted(merged)), cut, left_out)


def _timeline(store: Store, folder: str, manifest: Manifest) -> list[tuple[int, float, float | None]]:
    """Return the archived timeline: participant, start and end of each entry; what can't be read has no length."""
    key = next((one.key for one in manifest.documents if one.name == TIMELINE), None)
    if key is None:
        return []
    try:
        entries = json.loads(b"".join(store.read(f"{folder}/{key}")))
    except (ValueError, RecursionError, ObjectMissingError, IntegrityError) as error:
        log.warning("%s/%s can't be read, the parts tell who spoke: %s", folder, key, type(error).__name__)
        return []
    return [_entry(one) for one in entries] if isinstance(entries, list) else []


def _entry(entry: Any) -> tuple[int, float, float | None]:
    fields = entry if isinstance(entry, dict) else {}
    start, end = (_relative(fields.get(f"{name}_timestamp")) for name in ("start", "end"))
    participant = fields.get("participant")
    who = participant.get("id") if isinstance(participant, dict) else None
    if isinstance(who, str) and re.fullmatch(r"-?[0-9]{1,18}", who):
        who = int(who)
    if isinstance(who, bool) or not isinstance(who, int):
        who = UNKNOWN_SPEAKER
    return (who, 0.0, 0.0) if start is None else (who, start, end)


def _relative(timestamp: Any) -> float | None:
    value = timestamp.get("relative") if isinstance(timestamp, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
