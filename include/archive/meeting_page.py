"""The page of a meeting: what its manifest lists, to see, to listen to and to download.

One file that needs nothing but itself and the audio beside it: one style sheet and one script, whose hashes the browser
is told beforehand. Every value from the archive goes through :func:`~include.archive.markup.text` or
:func:`_address`, so a participant's name is only ever text. The same page stands in the archive, see :data:`PAGE`, and
is shown by Airflow.

The page is made from the manifest and proves nothing by itself: nothing reads it but people.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from bisect import bisect_left
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from include.archive.beside import Beside
from include.archive.layout import MANIFEST_NAME, PAGE_NAME, is_key
from include.archive.manifest import PURGED, ParticipantFacts
from include.archive.markup import size, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from include.archive.manifest import Manifest, MissingPart, PartEntry
    from include.archive.stores import ObjectInfo

MOST_ROWS = 2_000
"""A page lists no more parts, people or objects than that; the manifest has them all."""

PAGE_MEDIA_TYPE = "text/html; charset=utf-8"

_MOST_OF_A_NAME = 80
_MOST_BARS = 300
_LONGEST_SECONDS = 10_000_000.0
_DENSE = 12
_OPEN = 12
_MARK = '<meta name="generator" content="recall-audio-archive">'
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)


def _beside(extension: str) -> str:
    return Path(__file__).with_suffix(extension).read_text("utf-8")


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


STYLE, SCRIPT = _beside(".css"), _beside(".js")

_POLICY = (
    "default-src 'none'",
    f"style-src {_hash(STYLE)}",
    f"script-src {_hash(SCRIPT)}",
    # Not every browser counts the file system as a place.
    "media-src 'self' file:",
    "base-uri 'none'",
    "form-action 'none'",
)
CONTENT_SECURITY_POLICY = "; ".join((*_POLICY, "frame-ancestors 'self'"))
"""What a browser may load for the page: its own style and script, and audio from the same place.

The page says the same itself, but for who may frame it, as Airflow does, which only a header can say."""

_OUTCOMES = {
    "archived": ("Archived", "good"),
    "archived_with_gaps": ("Archived with gaps", "warn"),
    "nothing_to_archive": ("Nothing to archive", "calm"),
}

_WHY = {
    "media_failed": "Recall could not make this audio.",
    "media_deleted": "It was deleted at Recall before it could be archived.",
    PURGED: "It was removed from the archive on request.",
}


PAGE = Beside(
    PAGE_NAME, PAGE_MEDIA_TYPE, lambda _, folder, manifest: settled_page(folder, manifest).encode(), mark=_MARK.encode()
)
"""The page of a settled recording."""

write, renew, show = PAGE.write, PAGE.renew, PAGE.show


def settled_page(folder: str, manifest: Manifest) -> str:
    """Show a recording whose manifest is written.

    :param folder: the recording's folder; the page's links are relative to it.
    """
    recording = manifest.recording
    outcome, colour = _OUTCOMES.get(manifest.outcome, (manifest.outcome, "calm"))
    title = recording.title or "Untitled meeting"
    meeting = _Meeting(manifest)
    when = [
        _period(recording.started_at or recording.created_at, recording.completed_at),
        (recording.platform or "").replace("_", " ").title(),
    ]
    facts = {
        "Length": _clock(meeting.end - max(0.0, meeting.begin)) if meeting.talk else "",
        "Talk time": _clock(sum(meeting.talk.values())) if meeting.talk else "",
        "Silence": _clock(meeting.silence) if meeting.talk else "",
        "Participants": f"{len(meeting.people):,}",
        "Parts": f"{len(manifest.parts):,}",
        "Size": size(sum(part.bytes for part in manifest.parts)),
    }
    body = [
        html_header(
            title, outcome, colour, manifest.outcome_reason, " · ".join(f"<bdi>{text(x)}</bdi>" for x in when if x)
        ),
        html_facts(facts),
        meeting.timeline(),
        meeting.listing(folder),
        _missing(manifest.missing, meeting.people, bool(manifest.parts)),
    ]
    links = f"{_link(folder, MANIFEST_NAME, MANIFEST_NAME)} lists all of this, for programs."
    body.append(_footer(folder, links))
    return html_page(title, body, SCRIPT)


class _Meeting:
    """Who talked when, as far as a page can show it."""

    def __init__(self, manifest: Manifest) -> None:
        self.people = {person.id: person for person in manifest.participants}
        self.parts: dict[int, list[PartEntry]] = {}
        for part in manifest.parts:
            self.people.setdefault(part.participant_id, ParticipantFacts(id=part.participant_id))
            self.parts.setdefault(part.participant_id, []).append(part)
        self.twins = {id(part) for theirs in self.parts.values() for part in _twins(theirs)}
        spans = {
            number: [_span(part) for part in theirs if _is_placed(part) and id(part) not in self.twins]
            for number, theirs in self.parts.items()
        }
        self.spans = {number: sorted(theirs) for number, theirs in spans.items() if theirs}
        self.talk = {number: _length(_joined(theirs)) for number, theirs in self.spans.items()}
        whole = _joined(sorted(span for theirs in self.spans.values() for span in theirs))
        self.begin = min(0.0, whole[0][0]) if whole else 0.0
        self.end = max(whole[-1][1], self.begin + 1.0) if whole else 0.0
        recording = manifest.recording
        if whole and recording.started_at and recording.completed_at:
            seconds = (recording.completed_at - recording.started_at).total_seconds()
            # A recording goes on when nobody talks any more; one that says something odd is not believed.
            self.end = seconds if self.end < seconds < 10 * self.end + 600 else self.end
        self.silence = self.end - self.begin - _length(whole)
        # Those that come first, so that what can be played has no holes.
        listed = sorted(manifest.parts, key=lambda part: part.start_relative_seconds)[:MOST_ROWS]
        self.listed = {id(part) for part in listed}
        self.left_out = len(manifest.parts) - len(listed)

    def timeline(self) -> str:
        """Return the player, and a lane for everybody who talked."""
        if not self.spans:
            return self._silent(self.people)
        shown = list(self.spans)[:MOST_ROWS]
        total = sum(self.talk.values())
        step = next((step for step in _TICKS if (self.end - self.begin) / step <= 8), 7 * _TICKS[-1])
        count = min(int(self.end // step) - math.ceil(self.begin / step) + 1, 100)
        ticks = [step * (math.ceil(self.begin / step) + number) for number in range(count)]
        grid = "".join(f'<line x1="{x}" x2="{x}" y1="0" y2="100%"/>' for x in map(self._across, ticks))
        labels = "".join(f'<text x="{self._across(at)}" y="12">{_clock(at)}</text>' for at in ticks)
        return (
            f'<section aria-labelledby="timeline" data-begin="{self.begin:.3f}" data-end="{self.end:.3f}">'
            '<h2 id="timeline">Timeline</h2><p class="plain small">To play this here takes JavaScript; the '
            f"downloads below work without.</p>{_player(self.end)}"
            '<div class=ruler><span>Participant</span><div class=seek role=slider tabindex=0 aria-label="Position" '
            f'aria-valuemin="{self.begin:.1f}" aria-valuemax="{self.end:.1f}" aria-valuenow="{self.begin:.1f}">'
            f'<svg aria-hidden=true><defs><g id="grid">{grid}</g></defs>{labels}</svg></div>'
            f'<span class=talk>Talk time</span><span></span></div><ul class="lanes{" dense" * (len(shown) > _DENSE)}">'
            f"{''.join(self._lane(number, total) for number in shown)}</ul>"
            f"{self._silent(number for number in self.people if number not in self.spans)}</section>"
        )

    def _across(self, seconds: float) -> str:
        return f"{100 * (seconds - self.begin) / (self.end - self.begin):.3f}%"

    def _lane(self, number: int, total: float) -> str:
        spans = self.spans[number]
        if len(spans) > _MOST_BARS:
            # What no screen could tell apart is one bar.
            spans = _joined(spans, (self.end - self.begin) / 1500)
        width = 100 / (self.end - self.begin)
        bars = "".join(
            f'<rect x="{self._across(begin)}" y="27%" height="46%" width="{max(0.12, width * (end - begin)):.3f}%"/>'
            for begin, end in spans
        )
        percent = 100 * self.talk[number] / total
        share = f"{percent:.0f}%" if percent >= 1 else "&lt;1%"
        return (
            f'<li data-who="{number}"><span class=who><a href="#participant-{number}">'
            f'<bdi id="name-{number}">{_name(self.people[number])}</bdi></a></span>'
            f'<div class=track><svg aria-hidden=true><use href="#grid"/>{bars}</svg></div>'
            f"<span class=talk>{_clock(self.talk[number])} <span class=share>{share}</span></span>"
            f'<button class=only id="only-{number}" aria-labelledby="only-{number} name-{number}" aria-pressed=false '
            "data-live hidden>Only</button></li>"
        )

    def _silent(self, numbers: Iterable[int]) -> str:
        some = list(numbers)
        if not some:
            return ""
        names = ", ".join(f"<bdi>{_name(self.people[number])}</bdi>" for number in some[:MOST_ROWS])
        more = f" and {len(some) - MOST_ROWS:,} more" if len(some) > MOST_ROWS else ""
        return f"<p class='silent small faint'>There without audio: {names}{more}</p>"

    def listing(self, folder: str) -> str:
        """Return every part, by participant."""
        if not self.parts:
            return ""
        is_open = " open" if len(self.listed) <= _OPEN else ""
        body = []
        row = 0
        for number, theirs in self.parts.items():
            rows = []
            for part in theirs:
                if id(part) in self.listed:
                    row += 1
                    rows.append(_part(folder, part, row, is_twin=id(part) in self.twins))
            if rows:
                body.append(
                    f'<details id="participant-{number}"{is_open}>{_summary(self.people[number], theirs)}'
                    f"<ol class=parts>{''.join(rows)}</ol></details>"
                )
        if self.left_out:
            body.append(
                f"<p>The first {MOST_ROWS:,} parts are listed and played here. "
                f"{self.left_out:,} more parts are listed in the manifest alone.</p>"
            )
        return f"<section><h2>Parts and downloads</h2>{''.join(body)}</section>"


def unsettled_page(folder: str, stored: Sequence[ObjectInfo], problem: str | None = None) -> str:
    """Show a recording without a manifest that could tell about it.

    :param stored: what its folder holds.
    :param problem: why its manifest can't be read; None where there is none.
    """
    title = "Recording " + folder.rpartition("recording=")[2]
    if problem is not None:
        header = html_header(title, "Manifest unreadable", "warn", problem)
    elif stored:
        header = html_header(title, "Not settled", "warn", "Without a manifest, nothing says yet that this is all.")
    else:
        header = html_header(title, "Nothing stored", "calm", "No part of this recording is in the archive yet.")
    body = [header]
    if stored:
        rows = "".join(
            f"<tr><td>{_link(folder, name, name)}</td><td class=number>{size(info.size)}</td></tr>"
            for info in stored[:MOST_ROWS]
            for name in (info.key[len(folder) + 1 :],)
        )
        more = "<p>And more.</p>" if len(stored) > MOST_ROWS else ""
        body.append(
            "<section><h2>Stored so far</h2>"
            f"<table><tr><th>Object<th class=number>Size</tr>{rows}</table>{more}</section>"
        )
    body.append(_footer(folder))
    return html_page(title, body)


def html_page(title: str, body: Iterable[str], script: str = "") -> str:
    """Return a whole page in the style of a meeting's.

    :param title: any text.
    :param body: markup, which begins with what :func:`html_header` returns.
    """
    behind = f"<script>{script}</script>" if script else ""
    header, *rest = filter(None, body)
    return (
        '<!DOCTYPE html>\n<html lang="en" dir="ltr"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(_POLICY)}">{_MARK}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="robots" content="noindex">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"{header}\n<main>\n{chr(10).join(rest)}\n</main>\n{behind}</body></html>\n"
    )


def html_header(title: str, badge: str, colour: str, reason: str | None, when: str = "") -> str:
    """Return the beginning of a page: any text, but for ``when``, which is markup."""
    lines = (f"<p class=when>{when}</p>" if when else "") + (f"<p>{text(reason)}</p>" if reason else "")
    first = f"<span class='badge {colour}'>{text(badge)}</span><h1><bdi>{text(title)}</bdi></h1>"
    return f"<header>{first}{lines}</header>"


def html_facts(facts: Mapping[str, str]) -> str:
    """Return names and values, without those that are empty."""
    shown = "".join(f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items() if value)
    return f"<dl class=facts>{shown}</dl>"


def _player(end: float) -> str:
    speeds = "".join(
        f"<option value={one}{' selected' * (one == '1')}>{one}×" for one in ("0.75", "1", "1.25", "1.5", "2")
    )
    return (
        '<div class=player role=group aria-label="Player" data-live hidden>'
        '<button class=play aria-label="Play"><svg viewBox="0 0 16 16" aria-hidden=true>'
        '<path class=go d="M4 2v12l10-6z"/><path class=pause d="M3 2h4v12H3zM9 2h4v12H9z"/></svg></button>'
        f"<span class=clock><b>{_clock(0)}</b> <span>/ {_clock(end)}</span></span>"
        "<span class=whose><b><bdi>Everyone</bdi></b><span></span> "
        "<button class='everyone small' hidden>Everyone</button> <span class=small role=status></span></span>"
        '<label for="skip"><input type=checkbox id="skip">Skip silence</label>'
        f'<label for="speed">Speed <select id="speed">{speeds}</select></label></div>'
    )


def _summary(person: ParticipantFacts, parts: Sequence[PartEntry]) -> str:
    more = [
        "Host" if person.is_host else "",
        person.email or "",
        (person.platform or "").replace("_", " "),
        f"id {person.id}",
    ]
    count = f"{len(parts):,} part{'s' * (len(parts) != 1)} · {size(sum(part.bytes for part in parts))}"
    return (
        f"<summary><bdi class=name>{_name(person)}</bdi>"
        f"<span class='faint small'>{' · '.join(f'<bdi>{text(one)}</bdi>' for one in more if one)}</span>"
        f"<span class='sum faint small'>{count}</span></summary>"
    )


def _part(folder: str, part: PartEntry, row: int, *, is_twin: bool) -> str:
    proof = ", ".join(part.verified_by) or "nothing"
    notes = [warning.replace("_", " ") for warning in part.warnings]
    if is_twin:
        notes.append("the same audio as above in another format")
    address = _address(folder, part.key)
    download = listen = place = ""
    if address:
        name = re.sub(r"[^a-z0-9_.-]", "-", part.key)
        download = f'<a href="{address}" download="{name}" aria-describedby="at-{row}">Download</a>'
    if address and part.bytes and part.media_type.startswith("audio/") and _is_placed(part):
        begin, end = _span(part)
        place = f' data-who="{part.participant_id}" data-at="{begin:.6f}" data-for="{end - begin:.6f}"'
        place += " data-twin" if is_twin else ""
        listen = (
            f'<button class=listen id="play-{row}" aria-labelledby="play-{row} at-{row}" data-live hidden>Play</button>'
        )
    first, last = part.start_relative_seconds, part.start_relative_seconds + part.duration_seconds
    return (
        f'<li{place}><span>{listen}</span><span class=span id="at-{row}">{_clock(first, exact=True)} – '
        f"{_clock(last, exact=True)}</span><span class='size faint'>{_clock(part.duration_seconds, exact=True)}</span>"
        f"<span class='type faint'>{size(part.bytes)} {text(part.media_type.removeprefix('audio/'))}</span>{download}"
        f"<p class='proof faint small'>SHA-256 <code title=\"{text(part.sha256)}\">{text(part.sha256[:12])}</code> · "
        f"verified by {text(proof)}{''.join(f' · {text(note)}' for note in notes)}</p></li>"
    )


def _missing(missing: Sequence[MissingPart], people: Mapping[int, ParticipantFacts], is_there: bool) -> str:
    def row(part: MissingPart) -> str:
        person = None if part.participant_id is None else people.get(part.participant_id)
        unknown = "Everybody’s audio" if part.part_id is None else "An unknown participant"
        whose = f"<bdi>{_name(person)}</bdi>" if person else unknown
        what = "the whole artifact" if part.part_id is None else f"part {part.part_id}"
        why = _WHY.get(part.error_code, "")
        return (
            f"<li><p><b>{whose}</b> · {text(what)} <span class='faint small'>of {text(part.artifact_id)}</span></p>"
            f"<p>{why} <code>{text(part.error_code)}</code></p><p class='faint small'>{text(part.message)}</p></li>"
        )

    if not missing:
        nothing = "Nothing. Every part that Recall listed is stored and verified." if is_there else ""
        return f"<section><h2>What is missing</h2><p class=faint>{nothing}</p></section>" if nothing else ""
    more = len(missing) - MOST_ROWS
    return (
        "<section><h2>What is missing for good, and why</h2><ul class=missing>"
        f"{''.join(row(part) for part in missing[:MOST_ROWS])}</ul>"
        f"{f'<p>And {more:,} more.</p>' if more > 0 else ''}</section>"
    )


def _is_placed(part: PartEntry) -> bool:
    """Tell whether a part has a place on a timeline; a manifest may hold any number."""
    return abs(part.start_relative_seconds) < _LONGEST_SECONDS and 0 < part.duration_seconds < _LONGEST_SECONDS


def _span(part: PartEntry) -> tuple[float, float]:
    return part.start_relative_seconds, part.start_relative_seconds + part.duration_seconds


def _joined(spans: Iterable[tuple[float, float]], gap: float = 0.0) -> list[tuple[float, float]]:
    """Join spans that overlap, or are no more than a gap apart; they come in order."""
    joined: list[tuple[float, float]] = []
    for begin, end in spans:
        if joined and begin <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def _length(spans: Iterable[tuple[float, float]]) -> float:
    return math.fsum(end - begin for begin, end in spans)


def _twins(parts: Sequence[PartEntry]) -> list[PartEntry]:
    """Return those parts of one participant whose audio another artifact holds too, as Recall can give it twice.

    What is uncompressed counts as the first one: a player finds its way in it to the sample.
    """
    by_artifact: dict[str, list[PartEntry]] = {}
    for part in parts:
        if _is_placed(part):
            by_artifact.setdefault(part.artifact_id, []).append(part)
    twins: list[PartEntry] = []
    covered: list[tuple[float, float]] = []
    for _, theirs in sorted(by_artifact.items(), key=lambda one: (one[1][0].media_type != "audio/wav", one[0])):
        fresh: list[PartEntry] = []
        for part in theirs:
            begin, end = _span(part)
            first = max(0, bisect_left(covered, (begin, begin)) - 1)
            both = 0.0
            for other_begin, other_end in covered[first:]:
                if other_begin >= end:
                    break
                both += max(0.0, min(end, other_end) - max(begin, other_begin))
            (twins if both > (end - begin) / 2 else fresh).append(part)
        covered = _joined(sorted([*covered, *map(_span, fresh)]))
    return twins


def _footer(folder: str, links: str = "") -> str:
    first = f"<p>{links}</p>" if links else ""
    place = f"<p>In the archive under <code>{text(folder)}/</code></p>"
    return f"<footer class='small faint'>{first}{place}</footer>"


def _name(person: ParticipantFacts) -> str:
    if person.name and person.name.strip():
        return text(person.name, _MOST_OF_A_NAME)
    return f"Participant {person.id}"


def _address(folder: str, name: str) -> str | None:
    """Return the relative address of an object; None for a name that no object has, whatever wrote it."""
    return quote(name, safe="/=") if is_key(f"{folder}/{name}") else None


def _link(folder: str, name: str, label: str) -> str:
    address = _address(folder, name)
    return text(label) if address is None else f'<a href="{address}">{text(label)}</a>'


def _clock(seconds: float, *, exact: bool = False) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``, with tenths where exact."""
    if not abs(seconds) < 1e9:
        return "?"
    tenths = round(abs(seconds) * 10) if exact else round(abs(seconds)) * 10
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    sign = "−" if seconds < 0 and tenths else ""
    shown = f"{hours}:{minutes:02d}:{rest // 10:02d}" if hours else f"{minutes}:{rest // 10:02d}"
    return f"{sign}{shown}.{rest % 10}" if exact else f"{sign}{shown}"


def _period(start: datetime, end: datetime | None) -> str:
    start = start.astimezone(timezone.utc)
    until = ""
    if end is not None:
        end = end.astimezone(timezone.utc)
        until = f" – {end:%H:%M}" if end.date() == start.date() else f" – {end.day} {end:%b %Y, %H:%M}"
    return f"{start.day} {start:%b %Y, %H:%M}{until} UTC"
