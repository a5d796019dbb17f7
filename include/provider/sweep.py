"""Find what is finished at Recall and not archived. Knows no Airflow; :mod:`include.provider.sweep_operators` does.

One walk over the workspace's recordings and one over its separate audio, joined by the recording's id: two list calls a
page, however many recordings there are. ``created_at`` is when a recording *began*, so the walk reaches back behind the
start of the last complete one (by the longest meeting, and more), and further to the oldest recording that is known to
be still owed.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from include.archive.layout import LOST_FOLDER, MANIFEST_NAME, recording_folder, safe_id
from include.provider.filters import minutes_of
from include.recall.errors import RecallNotFoundError
from include.recall.readiness import AUDIO_NOT_LISTED, Ended, Ready, assess_recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from include.archive.stores import Store
    from include.recall.client import RecallClient
    from include.recall.models import AudioArtifact, Recording

STATE_KEY = "sweep"
"""Row of the asset state store that says how far the sweep has come."""

OWED_PER_ROW = 400
"""How many owed recordings one row holds, which keeps it well below Airflow's 64 KiB."""

ALONE = 10
"""So many of the oldest owed recordings are asked for one by one instead of walking back to them: two calls each, one
of them a list call."""

MANIFEST_THREADS = 16


@dataclass(frozen=True)
class Owed:
    """A recording that is not settled, as the sweep remembers it.

    :param created_at: when it began, seconds since the epoch.
    :param expires_at: when Recall deletes it, where that is known.
    :param has_audio: separate audio was seen, so there is something to lose.
    :param told: somebody was told that it is about to expire.
    """

    created_at: int
    expires_at: int | None = None
    has_audio: bool = False
    told: bool = False

    @property
    def begun(self) -> datetime:
        """When it began."""
        return datetime.fromtimestamp(self.created_at, timezone.utc)

    def expires_before(self, moment: datetime) -> bool:
        """Tell whether Recall deletes it before a moment."""
        return self.expires_at is not None and self.expires_at < moment.timestamp()


@dataclass(frozen=True)
class State:
    """What a sweep leaves to the next one, in rows of the asset state store.

    :param walked_at: when the last complete walk began, by Recall's clock; ``None`` before the first.
    :param owed: what it left unsettled, by the recording's id.
    """

    walked_at: datetime | None = None
    owed: Mapping[str, Owed] = field(default_factory=dict)

    @classmethod
    def load(cls, rows: Any) -> State:
        """Read the rows; nothing there gives a state before the first walk."""
        head = rows.get(STATE_KEY)
        if not isinstance(head, dict):
            return cls()
        owed: dict[str, Owed] = {}
        for number in range(head["rows"]):
            row = rows.get(f"{STATE_KEY}_{head['turn']}_{number}") or {}
            owed |= {recording_id: Owed(*values) for recording_id, values in row.items()}
        walked_at = head["walked_at"]
        return cls(None if walked_at is None else datetime.fromisoformat(walked_at), owed)

    def save(self, rows: Any) -> None:
        """Write the rows. The first one is written last, so whoever reads finds the old state or the new one."""
        before = rows.get(STATE_KEY)
        before = before if isinstance(before, dict) else {"turn": 1, "rows": 0}
        turn = 1 - before["turn"]
        items = sorted(self.owed.items())
        chunks = [items[start : start + OWED_PER_ROW] for start in range(0, len(items), OWED_PER_ROW)]
        for number, chunk in enumerate(chunks):
            row = {key: [one.created_at, one.expires_at, int(one.has_audio), int(one.told)] for key, one in chunk}
            rows.set(f"{STATE_KEY}_{turn}_{number}", row)
        walked_at = None if self.walked_at is None else self.walked_at.isoformat()
        rows.set(STATE_KEY, {"walked_at": walked_at, "turn": turn, "rows": len(chunks)})
        for number in range(before["rows"]):
            rows.delete(f"{STATE_KEY}_{before['turn']}_{number}")


@dataclass(frozen=True)
class Window:
    """Which recordings to look at, by when they began.

    :param after: the beginning.
    :param before: the end; ``None`` for now, and for what is owed from before ``after`` as well.
    """

    after: datetime
    before: datetime | None = None

    @classmethod
    def since(cls, state: State, *, now: datetime, overlap: timedelta, first: timedelta) -> Window:
        """Return the window of a sweep that goes on where the last one was.

        :param now: for the very first sweep, which has nothing to go on from.
        :param overlap: how far it reaches back behind the start of the last complete walk.
        :param first: how far the very first sweep reaches back.
        """
        after = now - first if state.walked_at is None else state.walked_at - overlap
        older = sorted(one.begun for one in state.owed.values() if one.begun < after)
        if len(older) > ALONE:
            # We keep whole seconds of it, and nobody documents whether Recall's bound is inclusive.
            after = older[ALONE] - timedelta(seconds=1)
        return cls(after)


@dataclass(frozen=True)
class Found:
    """One recording that is finished, wanted and not archived."""

    recording: Recording
    artifacts: tuple[AudioArtifact, ...]

    @property
    def minutes(self) -> float | None:
        """How long it is."""
        return minutes_of(self.recording)


@dataclass
class Finding:
    """What a sweep found, each recording in one place.

    :param looked_at: how many recordings.
    :param walked_at: when the walk began, by Recall's clock.
    :param wanted: what is to be archived, the soonest to expire first.
    :param processing: what Recall is still at work on.
    :param archived: what has its manifest.
    :param failed: what has no separate audio because Recall failed on it.
    :param without_audio: finished, and no separate audio was ever listed.
    :param gone: deleted or expired before any sweep saw its audio.
    :param left_out: what the filters leave out, with the reason.
    :param lost: what was owed and is gone: expired before it was archived.
    :param expiring: what is not settled and expires soon.
    :param owed: what the next sweep has to look at again.
    :param calls: how many requests it cost, by the limit that they count against.
    """

    looked_at: int = 0
    walked_at: datetime | None = None
    wanted: list[Found] = field(default_factory=list)
    processing: list[str] = field(default_factory=list)
    archived: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    without_audio: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    lost: dict[str, dict[str, Any]] = field(default_factory=dict)
    expiring: list[str] = field(default_factory=list)
    owed: dict[str, Owed] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def find(
    client: RecallClient,
    store: Store,
    window: Window,
    *,
    owed: Mapping[str, Owed],
    reason_to_leave_out: Callable[[Recording], str | None],
    alert: timedelta,
) -> Finding:
    """Look at every recording of a window, and at those that are owed.

    :param owed: what the sweeps before left unsettled.
    :param reason_to_leave_out: the filters.
    :param alert: how long before its expiry an unsettled recording is named.
    :raises RecallError: the walk could not be finished. Then nothing is known, and nothing must be remembered.
    """
    before = dict(client.calls)
    began = time.monotonic()
    recordings = client.list_recordings(created_at_after=window.after, created_at_before=window.before)
    # An artifact may begin a little later than its recording.
    until = None if window.before is None else window.before + timedelta(days=1)
    artifacts = client.list_all_audio_separate(window.after, until)
    found = {one.id: one for one in recordings}
    now = client.server_time or datetime.now(timezone.utc)
    finding = Finding(walked_at=now - timedelta(seconds=time.monotonic() - began))
    missing: set[str] = set()
    if window.before is not None:
        owed = {}
    for recording_id in sorted(_unseen(found, artifacts, window) | (owed.keys() - found.keys())):
        try:
            found[recording_id] = client.get_recording(recording_id)
        except RecallNotFoundError:
            missing.add(recording_id)
    for recording_id, one in found.items():
        # Beyond the walk, or gone since it was seen; what was never seen to have audio is not asked about twice.
        unsure = one.created_at < window.after or (recording_id in owed and owed[recording_id].has_audio)
        if recording_id not in artifacts and unsure:
            artifacts[recording_id] = client.list_audio_separate(recording_id)
    if window.before is not None:
        found = {key: one for key, one in found.items() if window.after <= one.created_at <= window.before}
    finding.looked_at = len(found)
    folders = {key: recording_folder(one.created_at, key) for key, one in found.items()}
    folders |= {key: recording_folder(owed[key].begun, key) for key in missing & owed.keys()}
    settled = _settled(store, folders)
    for recording in found.values():
        _sort(finding, recording, tuple(artifacts.get(recording.id, ())), settled, owed, reason_to_leave_out, now)
    for recording_id in missing & owed.keys():
        if recording_id in settled:
            finding.archived.append(recording_id)
        else:
            _lose(finding, recording_id, owed[recording_id], now, "deleted")
    finding.wanted.sort(key=_urgency)
    finding.expiring = [key for key, left in finding.owed.items() if left.expires_before(now + alert)]
    finding.calls = {kind: number - before.get(kind, 0) for kind, number in client.calls.items()}
    return finding


def _unseen(
    found: Mapping[str, Recording], artifacts: Mapping[str, Iterable[AudioArtifact]], window: Window
) -> set[str]:
    """Return the recordings of which only the walk over the audio brought something that may be had."""
    return {
        recording_id
        for recording_id, some in artifacts.items()
        if recording_id not in found
        and any(one.status not in ("deleted", "failed") for one in some)
        and any(window.before is None or one.created_at <= window.before for one in some)
    }


def _settled(store: Store, folders: Mapping[str, str]) -> set[str]:
    """Return the recordings that have their manifest."""

    def is_settled(recording_id: str) -> bool:
        return store.stat(f"{folders[recording_id]}/{MANIFEST_NAME}") is not None

    with ThreadPoolExecutor(MANIFEST_THREADS, "manifests") as pool:
        return {one for one, there in zip(folders, pool.map(is_settled, folders), strict=True) if there}


def _sort(
    finding: Finding,
    recording: Recording,
    artifacts: tuple[AudioArtifact, ...],
    settled: set[str],
    owed: Mapping[str, Owed],
    reason_to_leave_out: Callable[[Recording], str | None],
    now: datetime,
) -> None:
    """Put one recording in its place."""
    known = owed.get(recording.id)
    if recording.id in settled:
        finding.archived.append(recording.id)
        return
    standing = assess_recording(recording, artifacts, asked_for=None, server_time=now)
    if isinstance(standing, Ended):
        if standing.code == "media_failed":
            finding.failed.append(recording.id)
        elif known is not None:
            reason = "expired" if standing.code == "media_expired" else "deleted"
            _lose(finding, recording.id, replace(known, expires_at=_seconds(recording.expires_at)), now, reason)
        else:
            finding.gone.append(recording.id)
        return
    if isinstance(standing, Ready):
        if (why := reason_to_leave_out(recording)) is not None:
            finding.left_out[recording.id] = why
            return
    elif standing.stage == AUDIO_NOT_LISTED:
        if known is not None and known.has_audio:
            _lose(finding, recording.id, known, now, "deleted")
        else:
            finding.without_audio.append(recording.id)
        return
    created_at = int(recording.created_at.timestamp())
    told = known is not None and known.told
    finding.owed[recording.id] = Owed(created_at, _seconds(recording.expires_at), bool(artifacts), told)
    if isinstance(standing, Ready):
        finding.wanted.append(Found(recording, artifacts))
    else:
        finding.processing.append(recording.id)


def _lose(finding: Finding, recording_id: str, known: Owed, now: datetime, reason: str) -> None:
    """Take note of a recording that was owed and can't be had any more, if there ever was something to lose."""
    if not known.has_audio:
        finding.gone.append(recording_id)
        return
    expired = known.expires_before(now)
    expires_at = None if known.expires_at is None else datetime.fromtimestamp(known.expires_at, timezone.utc)
    finding.lost[recording_id] = {
        "recording_id": recording_id,
        "outcome": "expired_before_archive",
        "reason": "expired" if expired else reason,
        "created_at": known.begun.isoformat(),
        "expires_at": None if expires_at is None else expires_at.isoformat(),
        "lost_at": (expires_at if expired and expires_at else now).isoformat(),
        "noticed_at": now.isoformat(),
    }


def _urgency(found: Found) -> tuple[bool, datetime, datetime, str]:
    recording = found.recording
    return (
        recording.expires_at is None,
        recording.expires_at or recording.created_at,
        recording.created_at,
        recording.id,
    )


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def keep_lost(store: Store, record: Mapping[str, Any]) -> bool:
    """Leave a note in the archive that a recording was lost; ``False`` if there is one already."""
    key = f"{LOST_FOLDER}/{safe_id(record['recording_id'])}.json"
    return store.put_if_absent(key, json.dumps(record, indent=1).encode(), "application/json")
