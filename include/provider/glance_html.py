"""What the archive at a glance looks like: a pure function from what is known to a page of HTML.

One page that needs nothing but itself: one style sheet and one script, whose hashes the browser is told beforehand.
Every value from the archive goes through :func:`~include.archive.markup.text`, so a title is only ever text.
Without the script all of it works but two comforts: links to Airflow's own pages leave Airflow's frame, and a view that
is being built tells how far it is.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from include.archive.index import Totals
from include.archive.layout import is_recording_folder
from include.archive.markup import size, text
from include.provider.awaited import run_id_of
from include.provider.runs import DAG_ID
from include.provider.verification import RUN_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime, timedelta

    from include.archive.index import Answer, Meeting, Standing

ROWS = 50
"""Meetings on a page."""

_MOST_OF_A_TITLE = 120
_MOST_OF_A_NAME = 60


def _beside(extension: str) -> str:
    return Path(__file__).with_suffix(extension).read_text("utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


STYLE, SCRIPT = _beside(".css"), _beside(".js")
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_hash(STYLE)}",
        f"script-src {_hash(SCRIPT)}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        # Airflow shows it in a frame of its own.
        "frame-ancestors 'self'",
    )
)
"""What a browser may load for the page: nothing but what is in it, and the page again."""

_STATES = {
    "archived": ("Archived", "good"),
    "archived_with_gaps": ("With gaps", "warn"),
    "nothing_to_archive": ("No audio", "calm"),
    "unsettled": ("Not settled", "calm"),
    "unreadable": ("Unreadable", "bad"),
    "lost": ("Lost", "bad"),
}
_SETTLED = ("archived", "archived_with_gaps", "nothing_to_archive")
_CHIPS = {
    "": "All",
    "archived": "Archived",
    "archived_with_gaps": "With gaps",
    "nothing_to_archive": "No audio",
    "unsettled": "Not settled",
    "unreadable": "Unreadable",
    "harmed": "Damaged",
    "lost": "Lost",
    "owed": "Owed",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody asked for.

    :param show: a state, ``harmed`` or ``owed``; empty for everything.
    :param page: which page of rows, from 1.
    """

    words: str = ""
    first: date | None = None
    last: date | None = None
    show: str = ""
    page: int = 1

    def address(self, **other: str | int) -> str:
        """Return the address of the same with something else in it, relative to the page."""
        values: dict[str, str | int | None] = {
            "q": self.words,
            "from": self.first.isoformat() if self.first else None,
            "to": self.last.isoformat() if self.last else None,
            "show": self.show,
            **other,
        }
        return escape("?" + urlencode({name: value for name, value in values.items() if value}))

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.words.strip() or self.first or self.last or self.show)


@dataclass(frozen=True)
class OwedRow:
    """A recording that the last sweep left to be archived."""

    recording_id: str
    began: datetime
    expires_at: datetime | None
    has_audio: bool


@dataclass(frozen=True, kw_only=True)
class View:
    """All that the page shows.

    :param owed: the soonest to expire first; None where nobody knows.
    :param swept_at: when that was found out.
    :param alert: how long before its expiry a recording is urgent.
    :param runs: states of the runs there are, by recording.
    :param place: the archive's address.
    """

    asked: Asked
    answer: Answer
    owed: list[OwedRow] | None
    swept_at: datetime | None
    alert: timedelta
    runs: Mapping[str, str]
    place: str
    now: datetime

    @property
    def urgent(self) -> list[OwedRow]:
        """What is owed and expires soon."""
        return [one for one in self.owed or () if one.expires_at and one.expires_at - self.now < self.alert]


def page(view: View) -> str:
    """Return the whole page."""
    answer, standing = view.answer, view.answer.standing
    body = [
        f"<header><h1>The archive</h1><p class='small faint'><code>{text(view.place)}</code></p>"
        f"{_standing(view)}{_trouble(view)}</header>",
        "<main>",
    ]
    if not answer.totals and not view.owed and not view.asked.is_narrow and standing.complete_at is not None:
        body.append(_nothing_yet())
    else:
        body += [_tiles(view), _search(view.asked), _chips(view), _table(view), _pager(view)]
    body.append(
        "</main><footer class='small faint'><p><a href='reports/verify/'>All verifications</a> · Times are UTC.</p>"
        "</footer>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en" dir="ltr"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="same-origin"><meta name="robots" content="noindex">'
        f"<title>The archive</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def building_text(standing: Standing) -> str:
    """Say how far a view is that is built for the first time."""
    if standing.days is None:
        return "Not built yet: the archive is about to be read for the first time on this machine."
    done, of = standing.days
    return (
        f"Being built: {done:,} of {of:,} days, the newest first. Until it is done, meetings are missing here and the "
        "sums are too small."
    )


def _standing(view: View) -> str:
    """Say how old the view is, or how far; to ask for the page again is to look again."""
    standing, now = view.answer.standing, view.now
    if standing.complete_at is None:
        return f"<p class=small role=status id=standing data-building>{building_text(standing)}</p>"
    recent, said = standing.recent_at, f"All of it as of {_clock(standing.complete_at, now)}"
    if recent is not None and (recent - standing.complete_at).total_seconds() >= 1:
        said += f"; the last week, and what was purged, as of {_clock(recent, now)}"
    again = f'<a href="{view.asked.address(page=view.asked.page if view.asked.page > 1 else "")}">Look again</a>'
    return f"<p class='small faint'><span role=status>{said}.</span> {again}</p>"


def _trouble(view: View) -> str:
    standing, lines = view.answer.standing, []
    if standing.error is not None and standing.error_at is not None:
        lines.append(
            f"<b>The archive could not be read</b> {_clock(standing.error_at, view.now)}: {text(standing.error)} "
            "What you see is what was there before."
        )
    if urgent := view.urgent:
        soon = f"{len(urgent):,} recording{'s' * (len(urgent) != 1)}"
        lines.append(
            f"<b>{soon} not archived yet, and about to be deleted at Recall</b>, the first "
            f"{_ahead(urgent[0], view.now)}. "
            f'<a href="{Asked(show="owed").address()}">Show what is owed</a>'
        )
    return "".join(f"<p class=trouble>{line}</p>" for line in lines)


def _tiles(view: View) -> str:
    total = view.answer.total
    settled = sum((total(state=one) for one in _SETTLED), Totals())
    sound = sum((total(state=one, verdict="sound") for one in _SETTLED), Totals()).meetings
    harmed, lost = total(verdict="harmed").meetings, total(state="lost").meetings
    proven = f"{100 * sound // settled.meetings if sound < settled.meetings else 100} %" if settled.meetings else "–"
    damaged = f"<b class=bad>{harmed:,} damaged</b>" if harmed else f"of {settled.meetings:,} settled"
    tiles = [
        ("Meetings", f"{total().meetings - lost:,}", f"{settled.meetings:,} settled"),
        ("Audio", _length(settled.seconds), "in separate tracks"),
        ("Stored", size(settled.bytes), _parts(settled.parts)),
        ("Verified", proven, damaged),
        _owed_tile(view),
    ]
    if lost:
        tiles.append(("Lost", f"<b class=bad>{lost:,}</b>", "and not archived"))
    shown = "".join(
        f"<div><dt>{name}</dt><dd><span class=figure>{value}</span><span class='small faint'>{more}</span></dd></div>"
        for name, value, more in tiles
    )
    return f"<dl class=tiles>{shown}</dl>"


def _owed_tile(view: View) -> tuple[str, str, str]:
    if view.owed is None:
        return "Owed", "–", "no sweep has told"
    urgent = len(view.urgent)
    swept = f"at the sweep {_clock(view.swept_at, view.now)}" if view.swept_at else ""
    return (
        "Owed",
        f"{len(view.owed):,}",
        f"<b class=warn>{urgent:,} expire{'s' * (urgent == 1)} soon</b>" if urgent else swept,
    )


def _search(asked: Asked) -> str:
    def day(value: date | None) -> str:
        return value.isoformat() if value else ""

    clear = '<a class=clear href="./">Clear</a>' if asked.is_narrow else ""
    kept = f'<input type=hidden name=show value="{text(asked.show)}">' if asked.show else ""
    return (
        '<form role=search action="./" method=get aria-label="Meetings">'
        "<label class=wide for=q><span>Search</span><input type=search id=q name=q autocomplete=off maxlength=200 "
        f'placeholder="Title, person, recording id or bot id" value="{text(asked.words)}"></label>'
        f'<label for=from><span>From</span><input type=date id=from name=from value="{day(asked.first)}"></label>'
        f'<label for=to><span>To</span><input type=date id=to name=to value="{day(asked.last)}"></label>'
        f"{kept}<button>Search</button>{clear}</form>"
    )


def _chips(view: View) -> str:
    asked, total = view.asked, view.answer.total
    links = []
    for show, name in _CHIPS.items():
        if show == "owed":
            count = len(view.owed or ())
        elif show == "harmed":
            count = total(verdict="harmed").meetings
        else:
            count = total(state=show or None).meetings
        if count or show in ("", asked.show):
            current = ' aria-current="page"' if show == asked.show else ""
            links.append(f'<li><a href="{asked.address(show=show)}"{current}>{name} <span>{count:,}</span></a></li>')
    return f'<nav aria-label="Filters"><ul class=chips>{"".join(links)}</ul></nav>'


def _count(view: View) -> int:
    show, total = view.asked.show, view.answer.total
    if show == "owed":
        return len(view.owed or ())
    if show == "harmed":
        return total(verdict="harmed").meetings
    return total(state=show or None).meetings


def _table(view: View) -> str:
    if view.asked.show == "owed":
        rows = [
            _owed_row(view, one) for one in (view.owed or ())[ROWS * (view.asked.page - 1) : ROWS * view.asked.page]
        ]
    else:
        rows = [_row(view, one) for one in view.answer.meetings]
    if not rows:
        return _nothing_found(view)
    heads = (
        "<th scope=col>When<th scope=col>Meeting<th scope=col>State<th scope=col>People"
        "<th scope=col class=number>Audio<th scope=col class=number>Size<th scope=col>Verified<th scope=col>Run"
    )
    return (
        f"<table><caption class=hidden>Meetings, newest first</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(view: View, one: Meeting) -> str:
    name, colour = _STATES[one.state]
    known = one.state in _SETTLED
    ident = f"<code>{text(one.recording_id, 100)}</code>"
    title = text((one.title or "").strip() or "Untitled meeting", _MOST_OF_A_TITLE)
    label = f"<bdi>{title}</bdi>" if known else f"Recording {ident}"
    if is_recording_folder(one.folder):
        label = f'<a href="{one.folder}/">{label}</a>'
    about = [ident, text((one.platform or "").replace("_", " "))] if known else []
    notes = [text(one.problem)] if one.problem else []
    if one.missing:
        notes.append(f"{_parts(one.missing)} missing")
    owed = next((row for row in view.owed or () if row.recording_id == one.recording_id), None)
    if owed is not None and owed.expires_at is not None:
        notes.append(f"expires {_ahead(owed, view.now)}")
    return _cells(
        when=_moment(one.began, day_only=one.state in ("unsettled", "unreadable")),
        meeting=label + (f"<p class='small faint'>{' · '.join(filter(None, about))}</p>" if about else ""),
        state=f"<span class='badge {colour}'>{name}</span>"
        + "".join(f"<p class='small {'problem' if colour == 'bad' else 'faint'}'>{note}</p>" for note in notes),
        people=_people(one) if known else "",
        audio=f"{_length(one.seconds)}<p class='small faint'>{_parts(one.parts)}</p>" if one.parts else "",
        stored=size(one.bytes) if one.parts else "",
        verified=_verdict(one),
        run=_run(view, one.recording_id),
    )


def _owed_row(view: View, one: OwedRow) -> str:
    urgent = one.expires_at is not None and one.expires_at - view.now < view.alert
    badge = f"Expires {_ahead(one, view.now)}" if one.expires_at else "Owed"
    audio = "Its audio is there" if one.has_audio else "No audio seen yet"
    return _cells(
        when=_moment(one.began),
        meeting=f"Recording <code>{text(one.recording_id, 100)}</code><p class='small faint'>{audio}</p>",
        state=f"<span class='badge {'warn' if urgent else 'calm'}'>{badge}</span>",
        run=_run(view, one.recording_id),
    )


def _cells(
    *,
    when: str,
    meeting: str,
    state: str,
    run: str,
    people: str = "",
    audio: str = "",
    stored: str = "",
    verified: str = "",
) -> str:
    return (
        f"<tr><td class=when>{when}</td><th scope=row class=meeting>{meeting}</th><td class=state>{state}</td>"
        f"<td class=people>{people}</td><td class='audio number'>{audio}</td><td class='size number'>{stored}</td>"
        f"<td class=verdict>{verified}</td><td class=run>{run}</td></tr>"
    )


def _people(one: Meeting) -> str:
    names = [f"<bdi>{text(name, _MOST_OF_A_NAME)}</bdi>" for name in one.names[:3]]
    if not names:
        return f"{one.people:,}" if one.people else ""
    more = one.people - len(names)
    return ", ".join(names) + (f" <span class=faint>+{more:,}</span>" if more > 0 else "")


def _verdict(one: Meeting) -> str:
    if one.verdict is None or one.verified_at is None or one.verified_by is None:
        return "<span class=faint>Not yet</span>" if one.state in _SETTLED else ""
    if one.verdict == "outdated":
        return "<span class=faint>Not since it changed</span>"
    day = f"{one.verified_at.day} {one.verified_at:%b %Y}"
    words, colour = (f"Damaged, {day}", "bad") if one.verdict == "harmed" else (day, "good")
    if RUN_NAME.fullmatch(one.verified_by):
        label = "Verification of " if one.verdict == "sound" else ""
        hidden = f"<span class=hidden>{label}</span>" if label else ""
        return f'<a class={colour} href="reports/verify/{one.verified_by}/">{hidden}{words}</a>'
    return f"<span class={colour}>{words}</span>"


def _run(view: View, recording_id: str) -> str:
    state = view.runs.get(recording_id)
    if state is None:
        return ""
    address = f"../../dags/{DAG_ID}/runs/{quote(run_id_of(recording_id), safe='')}"
    return f'<a href="{address}" data-top>{text(state)}<span class=hidden> run of {text(recording_id, 100)}</span></a>'


def _pager(view: View) -> str:
    count = _count(view)
    if count <= ROWS:
        return ""
    pages = -(-count // ROWS)
    first, last = ROWS * (view.asked.page - 1) + 1, min(count, ROWS * view.asked.page)
    links = []
    for name, number in (
        ("Newest", 1),
        ("Newer", view.asked.page - 1),
        ("Older", view.asked.page + 1),
        ("Oldest", pages),
    ):
        is_there = 1 <= number <= pages and number != view.asked.page
        links.append(
            f'<a href="{view.asked.address(page=number)}">{name}</a>'
            if is_there
            else f"<span class=faint>{name}</span>"
        )
    where = f"<span>{first:,}–{last:,} of {count:,}</span>"
    return f'<nav class=pager aria-label="Pages">{links[0]}{links[1]}{where}{links[2]}{links[3]}</nav>'


def _nothing_found(view: View) -> str:
    if view.asked.show == "owed" and view.owed is None:
        why = (
            "Nobody knows what is owed: no sweep has left word in Airflow's database. "
            f"It is the Dag {_dag('sweep_recordings')} that finds out."
        )
        return f"<section class=empty><h2>Nothing is known</h2><p>{why}</p></section>"
    if view.answer.standing.complete_at is None:
        return "<section class=empty><h2>Nothing here so far</h2><p>The archive is still being read.</p></section>"
    return (
        "<section class=empty><h2>No meeting like that</h2><p>Every word must be in a meeting's title, in the name or "
        "address of somebody who was there, in its day, or in one of its ids. "
        '<a href="./">Show all meetings</a></p></section>'
    )


def _nothing_yet() -> str:
    return (
        "<section class=empty><h2>Nothing is archived yet</h2>"
        "<p>A meeting shows up here as soon as something of it is in the archive.</p><ol>"
        f"<li>To archive a meeting now, trigger {_dag(DAG_ID)} with its link, its bot or its recording.</li>"
        f"<li>To have every meeting archived, leave {_dag('sweep_recordings')} switched on: every hour it archives "
        "what is finished at Recall.</li>"
        "<li>If you expected meetings here, look at the archive's address above. It is the Airflow Variable "
        "<code>recall_archive_uri</code>.</li></ol></section>"
    )


def _dag(dag_id: str) -> str:
    return f'<a href="../../dags/{dag_id}" data-top><code>{dag_id}</code></a>'


def _moment(moment: datetime, *, day_only: bool = False) -> str:
    clock = "" if day_only else f"<p class='small faint'>{moment:%H:%M}</p>"
    return f'<time datetime="{moment.isoformat()}">{moment.day} {moment:%b %Y}</time>{clock}'


def _clock(moment: datetime, now: datetime) -> str:
    day = "" if moment.date() == now.date() else f"{moment.day} {moment:%b} "
    return f'<time datetime="{moment.isoformat()}">{day}{moment:%H:%M:%S}</time>'


def _ahead(row: OwedRow, now: datetime) -> str:
    hours = (row.expires_at - now).total_seconds() / 3600 if row.expires_at else 0.0
    if hours <= 0:
        return "now"
    if hours < 1:
        return f"in {max(1, round(60 * hours))} min"
    return f"in {round(hours)} h" if hours < 48 else f"in {round(hours / 24)} days"


def _parts(count: int) -> str:
    return f"{count:,} part{'s' * (count != 1)}"


def _length(seconds: float) -> str:
    """Return how long it is as a person says it."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h" if hours >= 100 or not minutes else f"{hours} h {minutes} min"
