"""What a recording's folder, or a verification, looks like: pure functions from what is stored to a page of HTML.

The page needs nothing but itself: no script, and one style sheet whose hash the browser is told beforehand. Every value
from the archive goes through :func:`_text` or :func:`_link`, so a participant's name is only ever text.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from include.archive.layout import MANIFEST_NAME, is_key, is_recording_folder
from include.archive.manifest import ParticipantFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from include.archive.manifest import Manifest, MissingPart, PartEntry
    from include.archive.stores import ObjectInfo

MOST_ROWS = 2_000
"""A page shows no more parts, and no more objects, than that; the manifest has them all."""

_MOST_CHARACTERS = 500
_MOST_OF_A_NAME = 80
# What would reorder, break or hide the text around it, and halves of characters, which no encoding can carry.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --line: #e2e5ea; --text: #1b1f24; --faint: #626b77; --accent: #0b63ce;
  --track: #e8ebf0; --good: #14733c; --good-bg: #dff5e7; --warn: #8a5200; --warn-bg: #fdf0d5;
  --calm: #465160; --calm-bg: #e8ebf0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101317; --card: #191d23; --line: #2b313a; --text: #e7eaee; --faint: #98a2b0; --accent: #6cb0ff;
    --track: #272d36; --good: #74dc9c; --good-bg: #12351f; --warn: #f5c469; --warn-bg: #3a2b0c;
    --calm: #b9c2ce; --calm-bg: #2a313b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
h1 { display: inline; font-size: 1.6rem; line-height: 1.25; margin: 0 .6rem 0 0; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; line-height: 1.3; margin: 0; }
header p { margin: .4rem 0 0; }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.faint { color: var(--faint); }
.small { font-size: .87rem; }
.badge {
  display: inline-block; border-radius: 999px; padding: .1rem .65rem; font-size: .82rem; font-weight: 600;
  vertical-align: .2em; white-space: nowrap;
}
.good { color: var(--good); background: var(--good-bg); }
.warn { color: var(--warn); background: var(--warn-bg); }
.calm { color: var(--calm); background: var(--calm-bg); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-top: 1.1rem; }
.card > h2, .head { padding: .9rem 1.1rem; }
.facts { display: flex; flex-wrap: wrap; gap: .9rem 2.2rem; padding: 1rem 1.1rem; margin: 1.4rem 0 0; }
.facts dt { color: var(--faint); font-size: .8rem; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; }
th { color: var(--faint); font-size: .8rem; font-weight: 500; text-align: left; white-space: nowrap; }
th, td { padding: .5rem 1.1rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
td code { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.when { width: 42%; }
.what { width: 24%; min-width: 10rem; }
svg { display: block; width: 100%; height: 10px; border-radius: 3px; background: var(--track); }
svg rect { fill: var(--accent); }
.head { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: .2rem 1rem; }
.part {
  display: grid; grid-template-columns: 13rem 1fr auto; gap: .3rem 1.1rem; align-items: center;
  padding: .75rem 1.1rem; border-top: 1px solid var(--line);
}
.part p { margin: 0; }
.part .proof { grid-column: 1 / -1; }
.time { font-variant-numeric: tabular-nums; }
audio { width: 100%; height: 38px; }
footer { margin-top: 1.6rem; }
footer p { margin: .2rem 0; }
@media (max-width: 40rem) {
  body { padding: 1.25rem .8rem 3rem; }
  h1 { font-size: 1.35rem; }
  th, td { padding: .5rem .8rem; }
  .card > h2, .head, .part, .facts { padding-left: .8rem; padding-right: .8rem; }
  .facts { gap: .8rem 1.4rem; }
  .when { width: 30%; }
  .part { grid-template-columns: 1fr auto; }
  .part .player { grid-column: 1 / -1; grid-row: 2; }
}
"""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'",
        "media-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What a browser may load for the page: its style sheet, and audio from the same place."""

_OUTCOMES = {
    "archived": ("Archived", "good"),
    "archived_with_gaps": ("Archived with gaps", "warn"),
    "nothing_to_archive": ("Nothing to archive", "calm"),
}


def settled_page(folder: str, manifest: Manifest) -> str:
    """Show a recording whose manifest is written.

    :param folder: the recording's folder; the page's links are relative to it.
    """
    recording = manifest.recording
    outcome, colour = _OUTCOMES.get(manifest.outcome, (manifest.outcome, "calm"))
    title = recording.title or "Untitled meeting"
    people = {person.id: person for person in manifest.participants}
    parts: dict[int, list[PartEntry]] = {}
    for part in manifest.parts:
        people.setdefault(part.participant_id, ParticipantFacts(id=part.participant_id))
        parts.setdefault(part.participant_id, []).append(part)
    facts = {
        "Recorded": _period(recording.started_at or recording.created_at, recording.completed_at),
        "Platform": (recording.platform or "").replace("_", " ").title(),
        "Participants": f"{len(people):,}",
        "Parts": f"{len(manifest.parts):,}",
        "Audio": _clock(sum(part.duration_seconds for part in manifest.parts)),
        "Size": _size(sum(part.bytes for part in manifest.parts)),
    }
    body = [
        _header(title, outcome, colour, manifest.outcome_reason),
        _facts(facts),
        _participants(people.values(), parts),
    ]
    left = MOST_ROWS
    for number, theirs in parts.items():
        if left > 0:
            body.append(_participant(folder, people[number], theirs[:left]))
        left -= len(theirs)
    if left < 0:
        body.append(f"<p>{-left:,} more parts are listed in the manifest alone.</p>")
    if manifest.missing:
        body.append(_missing(manifest.missing, people))
    links = f"{_link(folder, MANIFEST_NAME, MANIFEST_NAME)} lists all of this, for programs. "
    body.append(_footer(folder, links + _link(folder, MANIFEST_NAME, "Download it", download=True)))
    return _page(title, body)


def unsettled_page(folder: str, stored: Sequence[ObjectInfo], problem: str | None = None) -> str:
    """Show a recording without a manifest that could tell about it.

    :param stored: what its folder holds.
    :param problem: why its manifest can't be read; None where there is none.
    """
    title = "Recording " + folder.rpartition("recording=")[2]
    if problem is not None:
        header = _header(title, "Manifest unreadable", "warn", problem)
    elif stored:
        header = _header(title, "Not settled", "warn", "Without a manifest, nothing says yet that this is all.")
    else:
        header = _header(title, "Nothing stored", "calm", "No part of this recording is in the archive yet.")
    body = [header]
    if stored:
        rows = "".join(
            f"<tr><td>{_link(folder, name, name)}</td><td class=number>{_size(info.size)}</td></tr>"
            for info in stored[:MOST_ROWS]
            for name in (info.key[len(folder) + 1 :],)
        )
        more = "<p class=head>And more.</p>" if len(stored) > MOST_ROWS else ""
        body.append(
            "<section class=card><h2>Stored so far</h2>"
            f"<table><tr><th>Object<th class=number>Size</tr>{rows}</table>{more}</section>"
        )
    body.append(_footer(folder))
    return _page(title, body)


_KINDS = {
    "missing": "missing",
    "damaged": "damaged",
    "size": "of another size",
    "bad_key": "listed under a key of another place",
    "unreadable": "can't be read",
    "manifest_damaged": "damaged manifest",
    "manifest_unreadable": "manifest can't be read",
    "manifest_too_new": "manifest of a newer version",
    "unsettled": "objects without a manifest",
    "extra": "in no manifest",
    "stale": "never finished",
}
_PROOFS = {
    "sha256": "reading every byte (SHA-256)",
    "store-checksum": "the store's own checksum",
    "schema": "the schema alone: no hash was noted with them",
}


def report_page(report: Mapping[str, Any]) -> str:
    """Show what one verification found.

    :param report: see :func:`include.provider.verification.write_report`.
    """
    totals = report["totals"]
    facts = {
        "Looked at": _scope(report["scope"]),
        "Mode": f"{report['mode']}, {'with repair' if report['repair'] else 'nothing changed'}",
        "Began": _moment(report["began_at"]),
        "Ended": _moment(report["ended_at"]),
        "Recordings": f"{sum(totals['recordings'].values()):,}",
        "Objects": f"{totals['objects']:,}",
        "Size": _size(totals["bytes"]),
        "Read": _size(totals["bytes_read"]),
    }
    badge, colour, advice = _verdict(report)
    files = ["report.json", *(str(key).rpartition("/")[2] for key in report["details"])]
    links = " · ".join(_link_to(name, name) for name in files)
    body = [
        _header("Verification of the archive", badge, colour, advice),
        _facts(facts),
        _problems(report),
        _counts(totals),
        f"<footer class='small faint'><p>All of it, for programs: {links}</p>"
        f"<p>{_link_to('../', 'All verifications')}</p></footer>",
    ]
    return _page("Verification of the archive", body)


def reports_page(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """List verifications.

    :param reports: name and content of each, newest first.
    """
    rows = []
    for run, report in reports:
        badge, colour, _ = _verdict(report)
        totals = report["totals"]
        rows.append(
            f"<tr><td>{_link_to(f'{run}/', _moment(report['began_at']))}</td><td>{_text(_scope(report['scope']))}</td>"
            f"<td class=number>{totals['objects']:,}</td><td class=number>{_size(totals['bytes'])}</td>"
            f"<td><span class='badge {colour}'>{_text(badge)}</span></td></tr>"
        )
    table = (
        "<section class=card><table><tr><th>Began<th>Looked at<th class=number>Objects<th class=number>Size<th>Result"
        f"</tr>{''.join(rows)}</table></section>"
    )
    title = "Verifications of the archive"
    return _page(title, [_header(title, f"{len(rows)} latest" if rows else "None so far", "calm", None), table])


def _verdict(report: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Return a few words on a verification, their colour, and what to do."""
    if report["unrepaired"]:
        advice = "What Recall no longer has comes back from a backup or an older version of the object: docs/verify.md."
        return f"{report['unrepaired']:,} not repaired", "warn", advice
    if not report["complete"]:
        return "Incomplete", "warn", "Some of it was not looked at: clear the run's failed tasks and its last one."
    repaired = sum(number for kind, number in report["totals"]["repaired"].items() if kind != "stale")
    return (f"{repaired:,} repaired" if repaired else "All as it should be"), "good", None


def _scope(scope: Mapping[str, Any]) -> str:
    if scope.get("recording_id"):
        return f"recording {scope['recording_id']}"
    if scope.get("from") or scope.get("to"):
        return f"{scope.get('from') or 'the first day'} to {scope.get('to') or 'the last day'}"
    return "the whole archive"


def _counts(totals: Mapping[str, Any]) -> str:
    def rows(name: str, counts: Mapping[str, int], words: Mapping[str, str]) -> str:
        return "".join(
            f"<tr><td class=faint>{name}</td><td>{_text(words.get(word, word.replace('_', ' ')))}</td>"
            f"<td class=number>{number:,}</td></tr>"
            for word, number in counts.items()
        )

    return (
        "<section class=card><h2>Figures</h2><table>"
        + rows("Recordings", totals["recordings"], {})
        + rows("Manifests proven by", totals["manifests"], {**_PROOFS, "sha256": "the SHA-256 noted with them"})
        + rows("Objects proven by", totals["proofs"], _PROOFS)
        + rows("Found", totals["found"], _KINDS)
        + rows("Of these made good", totals["repaired"], _KINDS)
        + "</table></section>"
    )


def _problems(report: Mapping[str, Any]) -> str:
    def row(one: Mapping[str, Any]) -> str:
        key = str(one["key"])
        folder = "/".join(key.split("/")[:2])
        where = _link_to(f"../../../{folder}/", key) if is_recording_folder(folder) else _text(key)
        colour, done = ("good", one["action"]) if one["action"] else ("warn", "not repaired")
        if one["kind"] == "extra":
            colour, done = "calm", "left alone"
        why = f"<br><code>{_text(str(one['code']))}</code> {_text(str(one['message']))}" if one["code"] else ""
        return (
            f"<tr><td class=small>{where}</td><td>{_text(_KINDS.get(one['kind'], str(one['kind'])))}<br>"
            f"<span class='small faint'>{_text(str(one['detail']))}</span></td>"
            f"<td class=small><span class='badge {colour}'>{_text(str(done))}</span>{why}</td></tr>"
        )

    problems = report["problems"]
    if not problems:
        return ""
    more = sum(report["totals"]["found"].values()) - len(problems)
    return (
        "<section class=card><h2>What was found</h2>"
        "<table><tr><th>Object<th class=what>What<th class=what>Repair</tr>"
        f"{''.join(row(one) for one in problems)}</table>"
        f"{f'<p class=head>And {more:,} more, in the files below.</p>' if more > 0 else ''}</section>"
    )


def _link_to(address: str, label: str) -> str:
    return f'<a href="{quote(address, safe="/=.")}">{_text(label)}</a>'


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def _page(title: str, body: Iterable[str]) -> str:
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _header(title: str, badge: str, colour: str, reason: str | None) -> str:
    lines = f"<p>{_text(reason)}</p>" if reason else ""
    first = f"<h1><bdi>{_text(title)}</bdi></h1><span class='badge {colour}'>{_text(badge)}</span>"
    return f"<header>{first}{lines}</header>"


def _facts(facts: Mapping[str, str]) -> str:
    shown = "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items() if value)
    return f"<dl class='card facts'>{shown}</dl>"


def _participants(people: Iterable[ParticipantFacts], parts: Mapping[int, Sequence[PartEntry]]) -> str:
    """Return the table of everybody, with a line that shows when each one's audio begins and ends."""
    ends = (part.start_relative_seconds + part.duration_seconds for theirs in parts.values() for part in theirs)
    end = max(ends, default=0.0)
    rows = []
    for person in people:
        theirs = parts.get(person.id, ())
        name = _name(person)
        rows.append(
            f"<tr><td>{f'<a href=#participant-{person.id}>{name}</a>' if theirs else name}</td>"
            f"<td class=number>{len(theirs):,}</td>"
            f"<td class=number>{_clock(sum(part.duration_seconds for part in theirs))}</td>"
            f"<td class=when>{_timeline(theirs, end)}</td></tr>"
        )
    return (
        "<section class=card><table><tr><th>Participant<th class=number>Parts<th class=number>Audio"
        f"<th class=when>When</tr>{''.join(rows)}</table></section>"
    )


def _timeline(parts: Sequence[PartEntry], end: float) -> str:
    if not parts or not 0 < end < math.inf:
        return ""
    bars = "".join(
        f'<rect x="{1000 * part.start_relative_seconds / end:.1f}" y="0" height="10" '
        f'width="{max(2.0, 1000 * part.duration_seconds / end):.1f}"/>'
        for part in parts[:MOST_ROWS]
    )
    return f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'


def _participant(folder: str, person: ParticipantFacts, parts: Sequence[PartEntry]) -> str:
    more = [
        "Host" if person.is_host else "",
        person.email or "",
        (person.platform or "").replace("_", " "),
        f"id {person.id}",
    ]
    return (
        f'<section class=card id="participant-{person.id}"><div class=head><h2>{_name(person)}</h2>'
        f"<span class='faint small'>{' · '.join(f'<bdi>{_text(one)}</bdi>' for one in more if one)}</span></div>"
        f"{''.join(_part(folder, part) for part in parts)}</section>"
    )


def _part(folder: str, part: PartEntry) -> str:
    proof = ", ".join(part.verified_by) or "nothing"
    warnings = "".join(f" · {_text(warning.replace('_', ' '))}" for warning in part.warnings)
    address = _address(folder, part.key)
    download = _link(folder, part.key, "Download", download=True) if address else ""
    player = ""
    if address and part.bytes and part.media_type.startswith("audio/"):
        player = f'<audio controls preload="none" src="{address}"></audio>'
    return (
        f"<div class=part><p class=time><span class=faint>from</span> {_clock(part.start_relative_seconds, exact=True)}"
        f" <span class=faint>for</span> {_clock(part.duration_seconds, exact=True)}</p>"
        f"<div class=player>{player}</div><p>{download}</p>"
        f"<p class='proof faint small'>{_size(part.bytes)} · {_text(part.media_type)} · "
        f'SHA-256 <code title="{_text(part.sha256)}">{_text(part.sha256[:12])}</code> · '
        f"verified by {_text(proof)}{warnings}</p></div>"
    )


def _missing(missing: Sequence[MissingPart], people: Mapping[int, ParticipantFacts]) -> str:
    def row(part: MissingPart) -> str:
        person = None if part.participant_id is None else people.get(part.participant_id)
        whose = _name(person) if person else "<span class=faint>unknown</span>"
        what = "all of it" if part.part_id is None else f"part {part.part_id}"
        message = f"<br><span class=small>{_text(part.message)}</span>" if part.message else ""
        return (
            f"<tr><td>{whose}</td>"
            f"<td class=small>{_text(what)}<br><span class=faint>of {_text(part.artifact_id)}</span></td>"
            f"<td><code>{_text(part.error_code)}</code>{message}</td></tr>"
        )

    more = len(missing) - MOST_ROWS
    return (
        "<section class=card><h2>Missing for good</h2><table><tr><th>Participant<th>What<th>Why</tr>"
        f"{''.join(row(part) for part in missing[:MOST_ROWS])}</table>"
        f"{f'<p class=head>And {more:,} more.</p>' if more > 0 else ''}</section>"
    )


def _footer(folder: str, links: str = "") -> str:
    first = f"<p>{links}</p>" if links else ""
    return f"<footer class='small faint'>{first}<p>In the archive under <code>{_text(folder)}/</code></p></footer>"


def _name(person: ParticipantFacts) -> str:
    if person.name and person.name.strip():
        return f"<bdi>{_text(person.name, _MOST_OF_A_NAME)}</bdi>"
    return f"Participant {person.id}"


def _text(value: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a value as text that is nothing but text, wherever in the page it stands."""
    short = value if len(value) <= most else value[:most] + "…"
    return escape(_UNFIT.sub(lambda found: f"\\u{ord(found.group()):04x}", short))


def _address(folder: str, name: str) -> str | None:
    """Return the relative address of an object; None for a name that no object has, whatever wrote it."""
    return quote(name, safe="/=") if is_key(f"{folder}/{name}") else None


def _link(folder: str, name: str, label: str, *, download: bool = False) -> str:
    address = _address(folder, name)
    if address is None:
        return _text(label)
    return f'<a href="{address}{"?download=1" if download else ""}">{_text(label)}</a>'


def _clock(seconds: float, *, exact: bool = False) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``, with tenths where exact."""
    if not abs(seconds) < 1e9:
        return "?"
    tenths = round(abs(seconds) * 10) if exact else round(abs(seconds)) * 10
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if seconds < 0 and tenths else ""
    text = f"{hours}:{minutes:02d}:{rest // 10:02d}" if hours else f"{minutes}:{rest // 10:02d}"
    return f"{sign}{text}.{rest % 10}" if exact else f"{sign}{text}"


def _size(count: int) -> str:
    """Return bytes as a person reads them, in powers of ten."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _period(start: datetime, end: datetime | None) -> str:
    start = start.astimezone(timezone.utc)
    until = ""
    if end is not None:
        end = end.astimezone(timezone.utc)
        until = f" – {end:%H:%M}" if end.date() == start.date() else f" – {end.day} {end:%b %Y, %H:%M}"
    return f"{start.day} {start:%b %Y, %H:%M}{until} UTC"
