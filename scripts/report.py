"""The table at the end of a run: what the archive holds of a recording, and whether the bytes are still the same."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from include.archive.layout import MANIFEST_NAME
from include.errors import CodedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from include.archive.stores import Store

HEADINGS = ("Participant", "Parts", "Seconds", "Bytes", "Verified", "Files")
LONGEST_NAME = 32


@dataclass(frozen=True)
class Row:
    """One participant.

    :param name: the participant's name, fit for a terminal.
    :param parts: number of stored parts.
    :param seconds: length of their audio.
    :param bytes: size of the stored objects.
    :param files: their paths below the recording's folder.
    :param faults: what is wrong with stored objects; empty when each was read again and has the manifest's SHA-256.
    """

    name: str
    parts: int
    seconds: float
    bytes: int
    files: Sequence[str]
    faults: Sequence[str]


@dataclass(frozen=True)
class RecordingReport:
    """One recording in the archive.

    :param title: the meeting's title, or the recording's id.
    :param outcome: the manifest's own word.
    :param folder: the recording's folder below the archive.
    :param rows: its participants.
    :param missing: how many parts the source could not give.
    """

    title: str
    outcome: str
    folder: str
    rows: Sequence[Row]
    missing: int

    @property
    def verified(self) -> bool:
        """Whether every stored object is there with the bytes that the manifest states."""
        return not any(row.faults for row in self.rows)


def read_recording(store: Store, folder: str) -> RecordingReport:
    """Read a recording's manifest, and every object that it lists again.

    :param store: the archive.
    :param folder: the recording's folder.
    :raises CodedError: the manifest cannot be read.
    """
    manifest = json.loads(b"".join(store.read(f"{folder}/{MANIFEST_NAME}")))
    names = _names(manifest["participants"])
    rows = []
    for participant in manifest["participants"]:
        parts = [part for part in manifest["parts"] if part["participant_id"] == participant["id"]]
        rows.append(
            Row(
                name=names[participant["id"]],
                parts=len(parts),
                seconds=sum(part["duration_seconds"] for part in parts),
                bytes=sum(part["bytes"] for part in parts),
                files=[part["key"] for part in parts],
                faults=[fault for part in parts if (fault := _fault(store, folder, part))],
            )
        )
    recording = manifest["recording"]
    return RecordingReport(
        title=printable(recording["title"] or recording["id"]),
        outcome=manifest["outcome"],
        folder=folder,
        rows=rows,
        missing=len(manifest["missing"]),
    )


def table(rows: Iterable[Row]) -> str:
    """Set the rows as a table, one line per file."""
    lines = [HEADINGS]
    for row in rows:
        verified = "NO" if row.faults else "yes" if row.files else "-"
        first, *others = row.files or ["-"]
        lines.append((row.name, str(row.parts), f"{row.seconds:.1f}", f"{row.bytes:,}", verified, first))
        lines += [("", "", "", "", "", other) for other in others]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(_line(line, widths) for line in lines)


def printable(text: str) -> str:
    """Give a text without the characters that could confuse a terminal."""
    return "".join(" " if unicodedata.category(char).startswith(("C", "Z")) else char for char in text)


def _fault(store: Store, folder: str, part: Mapping[str, Any]) -> str | None:
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in store.read(f"{folder}/{part['key']}"):
            digest.update(chunk)
            size += len(chunk)
    except CodedError as error:
        return f"{part['key']}: {error}"
    if size != part["bytes"] or digest.hexdigest() != part["sha256"]:
        return f"{part['key']}: the stored bytes are not those of the manifest"
    return None


def _names(participants: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Name each participant; two people of one name are told apart by their ids."""
    names = {one["id"]: printable(one["name"] or "").strip() or f"Participant {one['id']}" for one in participants}
    shared = list(names.values())
    return {
        number: f"{name[:LONGEST_NAME]} ({number})" if shared.count(name) > 1 else name[:LONGEST_NAME]
        for number, name in names.items()
    }


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    shown = []
    for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        padding = " " * (width - _width(cell))
        shown.append(padding + cell if 1 <= column <= 3 else cell + padding)
    return ("  " + "  ".join(shown)).rstrip()


def _width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)
