"""One verification of the archive: cut into chunks of days, each looked through and repaired, then summed up.

Knows no Airflow. The chunks share nothing but the archive itself: each leaves what it found there, as a file of one
line of JSON for each recording, and the report adds up what these files say.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any

from include.archive.errors import AlreadyExistsError, ObjectMissingError, StorageUnavailableError
from include.archive.layout import is_recording_folder
from include.archive.verify import Tally, days, find_folder, look_through, stale, stray
from include.errors import CodedError
from include.provider.repair import Outcome
from include.provider.transfer import MAX_BATCHES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from include.archive.copy import Stop
    from include.archive.stores import Store
    from include.archive.verify import Checked, Finding
    from include.provider.repair import Repairer

log = logging.getLogger(__name__)

FOLDER = "reports/verify"
"""Where verifications leave their reports, each in a folder of its own."""

RUN_NAME = re.compile(r"[0-9]{8}t[0-9]{6}z-[0-9a-f]{6}")
"""What :func:`run_name` returns."""

REPORT_VERSION = 1

MOST_PROBLEMS = 1_000
"""A report lists no more problems than that, those that are not repaired first; the chunks' files have them all."""


@dataclass(frozen=True)
class Task:
    """What one verification does.

    :param run: names it, see :func:`run_name`.
    :param mode: one of :data:`include.archive.verify.MODES`.
    :param repair: make good what the source still has, and remove what nobody finishes.
    :param stale_hours: age from which something unfinished, or a folder without a manifest, is no run's any more.
    """

    run: str
    mode: str = "full"
    repair: bool = True
    stale_hours: float = 48.0

    @property
    def old(self) -> float:
        """What is older than this, in seconds since 1970, is nobody's work any more."""
        return time.time() - 3600 * self.stale_hours


def run_name(moment: datetime, run_id: str) -> str:
    """Return the name of a run's folder: its time, and a few characters that tell two of the same second apart."""
    import hashlib

    digest = hashlib.sha256(run_id.encode()).hexdigest()[:6]
    return f"{moment.astimezone(timezone.utc):%Y%m%dt%H%M%Sz}-{digest}"


def plan(
    store: Store, *, recording_id: str | None, first_day: str | None, last_day: str | None
) -> list[dict[str, str]]:
    """Cut what is to be verified into at most about 40 chunks: ``first`` and ``last`` folder of each.

    :param recording_id: one recording alone.
    :param first_day: and ``last_day``: days such as ``2026-03-04``, both included.
    :raises CodedError: ``not_archived``: there is no folder of that recording.
    """
    if recording_id is not None:
        folder = find_folder(store, recording_id)
        if folder is None:
            raise CodedError(f"the archive has no folder of recording {recording_id}", code="not_archived")
        return [{"first": folder, "last": folder}]
    found = days(store, f"dt={first_day or ''}", f"dt={last_day or '9999'}")
    size = -(-len(found) // MAX_BATCHES)
    return [{"first": found[at], "last": found[at : at + size][-1]} for at in range(0, len(found), size or 1)]


def verify_chunk(
    store: Store, chunk: Mapping[str, str], task: Task, repairer: Repairer, *, key: str, stop: Stop
) -> dict[str, Any]:
    """Look a chunk through, repair it if asked to, and store what was found.

    :param chunk: as :func:`plan` made it.
    :param key: of the file with what was found; nothing is there yet.
    :return: ``first``, ``last``, ``details`` (the key) and ``tally``, fit for XCom.
    """
    tally = Tally()
    with store.write(key, media_type="application/x-ndjson") as details:

        def note(checked: Checked, outcomes: Iterable[tuple[Finding, Outcome]]) -> None:
            told = [_told(finding, outcome) for finding, outcome in outcomes]
            for one in told:
                tally.count(one["kind"], repaired=one["action"] is not None)
            line = {
                "folder": checked.folder,
                "state": checked.state,
                "manifest_proof": checked.manifest_proof,
                "objects": checked.objects,
                "bytes": checked.bytes,
                "proofs": dict(checked.proofs),
                "findings": told,
            }
            details.write(memoryview(json.dumps(line, sort_keys=True).encode("ascii") + b"\n"))

        for checked in look_through(
            store,
            first=chunk["first"],
            last=chunk["last"],
            mode=task.mode,
            unsettled_before=task.old,
            stop=stop,
        ):
            outcomes = repairer.repair(checked) if task.repair else [(one, Outcome()) for one in checked.findings]
            tally.add(checked)
            note(checked, outcomes)
        for folder, left in _unfinished(store, chunk, task):
            note(_nothing(folder), left)
        details.commit({})
    return {**chunk, "details": key, "tally": tally.to_dict()}


def _unfinished(
    store: Store, chunk: Mapping[str, str], task: Task
) -> Iterator[tuple[str, list[tuple[Finding, Outcome]]]]:
    """Yield what nobody finishes, by day; it is removed if asked for."""
    first, last = chunk["first"], chunk["last"]
    for folder in [first] if is_recording_folder(first) else days(store, first, last):
        if left := list(_removed(store, f"{folder}/", task)):
            yield folder, left


def _removed(store: Store, prefix: str, task: Task) -> Iterator[tuple[Finding, Outcome]]:
    for finding, unfinished in list(stale(store, prefix, task.old)):
        is_removed = task.repair and store.discard(unfinished)
        log.info("%s is unfinished, %s: %s", finding.key, finding.detail, "removed" if is_removed else "left")
        yield finding, Outcome(action="removed") if is_removed else Outcome()


def _nothing(folder: str) -> Checked:
    from include.archive.verify import Checked

    return Checked(folder=folder, state="none")


def _told(finding: Finding, outcome: Outcome) -> dict[str, Any]:
    told = {name: value for name, value in vars(finding).items() if name != "version"}
    return {**told, **asdict(outcome)}


@dataclass(kw_only=True)
class Report:
    """What a verification found, as it is stored and shown.

    :param key: where it is stored.
    :param document: its content.
    """

    key: str
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def unrepaired(self) -> int:
        """How many findings still do harm."""
        return int(self.document["unrepaired"])

    @property
    def harmful(self) -> int:
        """How many findings did harm, repaired ones included."""
        repaired: dict[str, int] = self.document["totals"]["repaired"]
        return self.unrepaired + sum(number for kind, number in repaired.items() if kind != "stale")


def write_report(
    store: Store,
    task: Task,
    *,
    scope: Mapping[str, Any],
    chunks: int,
    results: Sequence[Mapping[str, Any]],
    began_at: datetime,
) -> Report:
    """Sum the chunks up and store the report beside the recordings.

    :param scope: what was asked for: ``recording_id``, ``from``, ``to``; the whole archive where all are None.
    :param chunks: how many there are; without a result of each, the report is not ``complete``.
    """
    tally = Tally.total(result["tally"] for result in results)
    problems: list[dict[str, Any]] = []
    lesser: list[dict[str, Any]] = []

    def take(one: dict[str, Any]) -> None:
        kept = problems if one["action"] is None and one["kind"] not in ("extra", "stale") else lesser
        if len(kept) < MOST_PROBLEMS:
            kept.append(one)

    for result in results:
        for line in lines(store, result["details"]):
            for one in line["findings"]:
                take(one)
    if not any(scope.values()):
        beside = [(one, Outcome()) for one in stray(store)] + list(_removed(store, f"{FOLDER}/", task))
        for finding, outcome in beside:
            tally.count(finding.kind, repaired=outcome.action is not None)
            take(_told(finding, outcome))
    document = {
        "report_version": REPORT_VERSION,
        "scope": dict(scope),
        "mode": task.mode,
        "repair": task.repair,
        "began_at": began_at.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "ended_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": len(results) == chunks,
        "unrepaired": tally.unrepaired,
        "totals": tally.to_dict(),
        "problems": [*problems, *lesser][:MOST_PROBLEMS],
        "details": sorted(result["details"] for result in results),
    }
    data = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("ascii")
    for number in range(1, 1000):
        key = f"{FOLDER}/{task.run}/report{'' if number == 1 else f'-{number}'}.json"
        if store.put_if_absent(key, data, "application/json"):
            return Report(key=key, document=document)
    raise AlreadyExistsError(f"{FOLDER}/{task.run}: a thousand reports of one run")


def reports(store: Store, most: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the newest reports, by the names of their runs."""
    runs = sorted((folder.rpartition("/")[2] for folder in store.folders(FOLDER)), reverse=True)
    found = ((run, report(store, run)) for run in islice(runs, 2 * most))
    return list(islice(((run, document) for run, document in found if document is not None), most))


def report(store: Store, run: str) -> dict[str, Any] | None:
    """Return the last report of a run; None where there is none, or none that can be read."""
    keys = [info.key for info in store.list(f"{FOLDER}/{run}/report")]
    for key in sorted(keys, key=lambda key: (len(key), key), reverse=True):
        try:
            document = json.loads(b"".join(store.read(key)))
        except (ValueError, ObjectMissingError):
            continue
        if isinstance(document, dict) and document.get("report_version") == REPORT_VERSION:
            return document
    return None


def lines(store: Store, key: str) -> Iterator[dict[str, Any]]:
    """Yield what a chunk's file says of each recording.

    :raises StorageUnavailableError: when it ends in the middle of a line.
    """
    rest = b""
    for chunk in store.read(key):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(json.loads, lines)
    if rest:
        raise StorageUnavailableError(f"{store.uri(key)}: ends in the middle of a line")
