"""What a verification looks like: pure functions from its report to a page of HTML, in the style of a meeting's."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from include.archive.layout import is_recording_folder
from include.archive.markup import size, text
from include.archive.meeting_page import html_facts, html_header, html_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        "Size": size(totals["bytes"]),
        "Read": size(totals["bytes_read"]),
    }
    badge, colour, advice = _verdict(report)
    files = ["report.json", *(str(key).rpartition("/")[2] for key in report["details"])]
    links = " · ".join(_link_to(name, name) for name in files)
    body = [
        html_header("Verification of the archive", badge, colour, advice),
        html_facts(facts),
        _problems(report),
        _counts(totals),
        f"<footer class='small faint'><p>All of it, for programs: {links}</p>"
        f"<p>{_link_to('../', 'All verifications')}</p></footer>",
    ]
    return html_page("Verification of the archive", body)


def reports_page(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """List verifications.

    :param reports: name and content of each, newest first.
    """
    rows = []
    for run, report in reports:
        badge, colour, _ = _verdict(report)
        totals = report["totals"]
        rows.append(
            f"<tr><td>{_link_to(f'{run}/', _moment(report['began_at']))}</td><td>{text(_scope(report['scope']))}</td>"
            f"<td class=number>{totals['objects']:,}</td><td class=number>{size(totals['bytes'])}</td>"
            f"<td><span class='badge {colour}'>{text(badge)}</span></td></tr>"
        )
    table = (
        "<section><table><tr><th>Began<th>Looked at<th class=number>Objects<th class=number>Size<th>Result"
        f"</tr>{''.join(rows)}</table></section>"
    )
    title = "Verifications of the archive"
    return html_page(title, [html_header(title, f"{len(rows)} latest" if rows else "None so far", "calm", None), table])


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
            f"<tr><td class=faint>{name}</td><td>{text(words.get(word, word.replace('_', ' ')))}</td>"
            f"<td class=number>{number:,}</td></tr>"
            for word, number in counts.items()
        )

    return (
        "<section><h2>Figures</h2><table>"
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
        where = _link_to(f"../../../{folder}/", key) if is_recording_folder(folder) else text(key)
        colour, done = ("good", one["action"]) if one["action"] else ("warn", "not repaired")
        if one["kind"] == "extra":
            colour, done = "calm", "left alone"
        why = f"<br><code>{text(str(one['code']))}</code> {text(str(one['message']))}" if one["code"] else ""
        return (
            f"<tr><td class=small>{where}</td><td>{text(_KINDS.get(one['kind'], str(one['kind'])))}<br>"
            f"<span class='small faint'>{text(str(one['detail']))}</span></td>"
            f"<td class=small><span class='badge {colour}'>{text(str(done))}</span>{why}</td></tr>"
        )

    problems = report["problems"]
    if not problems:
        return ""
    more = sum(report["totals"]["found"].values()) - len(problems)
    return (
        "<section><h2>What was found</h2>"
        "<table><tr><th>Object<th class=what>What<th class=what>Repair</tr>"
        f"{''.join(row(one) for one in problems)}</table>"
        f"{f'<p>And {more:,} more, in the files below.</p>' if more > 0 else ''}</section>"
    )


def _link_to(address: str, label: str) -> str:
    return f'<a href="{quote(address, safe="/=.")}">{text(label)}</a>'


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
