"""The archive at a glance: the page ``/recall/archive/``, and what keeps its view of the archive up to date.

Only the API server imports this module. What is shown comes from the archive, by way of an index on this machine
(:mod:`include.archive.index`); Airflow's database adds what the last sweep left owed, and which runs there are, and
nothing is missing but that where it can't be asked.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from include.archive.index import STATES, Index, Query, plain
from include.archive.layout import is_recording_folder
from include.archive.verify import Finding
from include.errors import CodedError
from include.provider import runs, settings, verification
from include.provider.glance_html import ROWS, Asked, OwedRow, View, building_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from include.archive.index import Standing
    from include.archive.stores import Store

log = logging.getLogger(__name__)

FRESH_SECONDS = 5.0
"""A view that is no older than this is fresh enough for anybody."""
PART_OF_TIME = 20.0
"""The recent days are looked at again after so many times as long as that took the last time, and all of the archive
after twice as many: the archive's server is asked for little, however often somebody looks."""
ALL_SECONDS = 60.0
IDLE_SECONDS = 3600.0
"""How often the view is brought up to date while nobody looks, so that who was purged doesn't stay in it."""
IDLE_ALL_SECONDS = 86400.0
PATIENCE = 1.0
"""How long a page waits for a view that is about to be brought up to date."""
SOON = 0.3
MOST_REPORTS = 100
UNFINISHED = timedelta(days=2)
"""A verification that has not ended by then is not waited for."""
OWED_SECONDS = 5.0


class Keeper:
    """Keeps the view of one archive up to date, in a thread of its own, from when somebody first looks.

    :param uri: the archive's address.
    :param open_archive: opens the archive that is set at the moment, which may be another one by then.
    """

    def __init__(self, uri: str, open_archive: Callable[[], Store]) -> None:
        self.index = Index(uri)
        self.place = uri
        self._open = open_archive
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wanted = self._served = 0
        self._looked_at = self._ended_at = float("-inf")
        self._took = 0.0
        self._worked = 0.0

    def look(self) -> None:
        """Have the view brought up to date if it is due, and wait for it where that is a matter of a moment."""
        standing = self.index.standing()
        with self._turn:
            self._looked_at = time.monotonic()
            pause = max(FRESH_SECONDS, PART_OF_TIME * self._took)
            others_did = standing.recent_at is not None and _seconds_since(standing.recent_at) < FRESH_SECONDS
            if self._wanted > self._served or self._looked_at - self._ended_at < pause or others_did:
                return
            self._wanted += 1
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="recall-archive-index", daemon=True)
                self._thread.start()
            self._turn.notify_all()
            takes = standing.complete_seconds if self._is_all_due(standing) else self._took
            if standing.complete_at is None or takes < SOON:
                wanted = self._wanted
                self._turn.wait_for(lambda: self._served >= wanted, PATIENCE)

    def _run(self) -> None:
        is_ours = True
        while is_ours:
            with self._turn:
                self._turn.wait_for(lambda: self._wanted > self._served, IDLE_SECONDS)
                wanted = self._wanted
            try:
                is_ours = self._bring_up_to_date()
            except Exception as error:  # whatever it was: the next look tries again
                self._fail(error)
            with self._turn:
                self._served, self._ended_at = wanted, time.monotonic()
                self._turn.notify_all()

    def _bring_up_to_date(self) -> bool:
        """Do what is due; False where the archive is another one by now, so that this one rests."""
        store = self._open()
        if store.uri("") != self.place:
            return False
        standing, began = self.index.standing(), time.monotonic()
        is_all_due = self._is_all_due(standing)
        self._worked = time.thread_time()
        self.index.refresh(store, complete=is_all_due, rest=self._rest)
        take_verdicts(store, self.index)
        if not is_all_due:
            self._took = time.monotonic() - began
        return True

    def _fail(self, error: Exception) -> None:
        if isinstance(error, CodedError):
            log.warning("The index of the archive stays as it is: %s", error)
        else:
            log.error("The index of the archive stays as it is", exc_info=error)
        message = str(error) if isinstance(error, CodedError) else f"{type(error).__name__}, see the API server's log."
        with suppress(CodedError):
            self.index.fail(message)

    def _is_all_due(self, standing: Standing) -> bool:
        if standing.complete_at is None:
            return True
        is_idle = time.monotonic() - self._looked_at > IDLE_SECONDS
        pause = IDLE_ALL_SECONDS if is_idle else max(ALL_SECONDS, 2 * PART_OF_TIME * standing.complete_seconds)
        return _seconds_since(standing.complete_at) >= pause

    def _rest(self) -> None:
        # While a thread computes, the server's event loop gets the interpreter back too seldom: rest as long.
        time.sleep(min(1.0, max(0.0, time.thread_time() - self._worked)))
        self._worked = time.thread_time()


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(timezone.utc) - moment).total_seconds()


_keepers: dict[str, Keeper] = {}


def keeper_of(open_archive: Callable[[], Store]) -> Keeper:
    """Return what keeps the view of the archive that is set at the moment."""
    uri = open_archive().uri("")
    return _keepers.setdefault(uri, Keeper(uri, open_archive))


def view(params: Mapping[str, str], open_archive: Callable[[], Store]) -> View:
    """Return what a page shows.

    :param params: of the page's address, as whoever asked has written them.
    :param open_archive: opens the archive that is set at the moment.
    :raises CodedError: the archive can't be opened, or its index not read.
    """
    keeper = keeper_of(open_archive)
    keeper.look()
    asked, index = read_params(params), keeper.index
    owed, swept_at = _owed(asked, index)
    query = Query(
        asked.words,
        asked.first,
        asked.last,
        state=asked.show if asked.show in STATES else None,
        verdict="harmed" if asked.show == "harmed" else None,
    )
    most = 0 if asked.show == "owed" else ROWS
    answer = index.ask(query, skip=ROWS * (asked.page - 1), most=most)
    if asked.page > 1 and not answer.meetings and most:
        asked = replace(asked, page=1)
        answer = index.ask(query, most=most)
    shown = (owed or [])[ROWS * (asked.page - 1) :][:ROWS] if asked.show == "owed" else answer.meetings
    return View(
        asked=asked,
        answer=answer,
        owed=owed,
        swept_at=swept_at,
        alert=timedelta(hours=_alert_hours()),
        runs=_runs([one.recording_id for one in shown]),
        place=keeper.place,
        now=datetime.now(timezone.utc),
    )


def standing(open_archive: Callable[[], Store]) -> dict[str, Any]:
    """Return how far the view is, for a page that waits for it."""
    found = keeper_of(open_archive).index.standing()
    return {"building": found.complete_at is None, "text": building_text(found)}


def read_params(params: Mapping[str, str]) -> Asked:
    """Return what is asked for; what can't be understood is left out."""
    show, number = params.get("show", ""), params.get("page", "1")
    return Asked(
        words=params.get("q", "")[:200].encode("utf-8", "replace").decode(),
        first=_day(params.get("from", "")),
        last=_day(params.get("to", "")),
        show=show if show in (*STATES, "harmed", "owed") else "",
        page=max(1, int(number)) if number.isdecimal() and number.isascii() and len(number) < 7 else 1,
    )


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


# -- what Airflow's database knows ------------------------------------------------------------------------------------


def _alert_hours() -> float:
    try:
        return settings.EXPIRY_ALERT_HOURS.get()
    except CodedError:
        return settings.EXPIRY_ALERT_HOURS.default


def _owed(asked: Asked, index: Index) -> tuple[list[OwedRow] | None, datetime | None]:
    """Return what the last sweep left owed, the soonest to expire first, and when it was; None where nobody knows."""
    state: Any = _if_known(runs.sweep_state)
    if state is None or state.walked_at is None:
        return None, None
    words = plain(asked.words).split()
    settled = index.settled(list(state.owed))
    found = []
    for recording_id, one in state.owed.items():
        if recording_id in settled:
            continue
        began = one.begun
        expires_at = None if one.expires_at is None else datetime.fromtimestamp(one.expires_at, timezone.utc)
        text = plain(f"{recording_id} {began:%Y-%m-%d}")
        is_within = (asked.first or date.min) <= began.date() <= (asked.last or date.max)
        if is_within and all(word in text for word in words):
            found.append(OwedRow(recording_id, began, expires_at, one.has_audio))
    never = datetime.max.replace(tzinfo=timezone.utc)
    return sorted(found, key=lambda row: (row.expires_at or never, row.began)), state.walked_at


def _runs(recording_ids: Sequence[str]) -> Mapping[str, str]:
    if not recording_ids:
        return {}
    found: Mapping[str, str] | None = _if_known(lambda: runs.states_of(recording_ids))
    return found or {}


def _if_known(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # whatever the database says: the archive is shown without what it knows
        log.warning("Airflow's database does not tell about sweeps and runs (%s)", type(error).__name__)
        return None


# -- what verifications found -----------------------------------------------------------------------------------------


def take_verdicts(store: Store, index: Index) -> None:
    """Tell the index what verifications found that it has not heard of, back to the last one of the whole archive."""
    known = index.judged()
    names = sorted((folder.rpartition("/")[2] for folder in store.folders(verification.FOLDER)), reverse=True)
    names = [name for name in names if verification.RUN_NAME.fullmatch(name)][:MOST_REPORTS]
    fresh: list[tuple[str, dict[str, Any]]] = []
    rest: list[str] = []
    for number, name in enumerate(names):
        if name in known:
            continue
        document = verification.report(store, name)
        if document is None or not document.get("complete"):
            began = datetime.strptime(name[:16], "%Y%m%dt%H%M%Sz").replace(tzinfo=timezone.utc)
            if datetime.now(timezone.utc) - began < UNFINISHED:
                continue
        if document is not None:
            fresh.append((name, document))
            if document.get("complete") and not any(dict(document.get("scope") or {}).values()):
                rest = [one for one in names[number + 1 :] if one not in known]
                break
        else:
            rest.append(name)
    for name, document in reversed(fresh):
        try:
            began = datetime.fromisoformat(document["began_at"])
            is_taken = index.judge(name, began, _found(store, document), also_known=rest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("The report of verification %s can't be read (%s)", name, type(error).__name__)
            is_taken = index.judge(name, datetime.fromtimestamp(0, timezone.utc), ())
        if not is_taken:
            return


def _found(store: Store, document: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    for key in document["details"]:
        for line in verification.lines(store, key):
            if line["state"] not in ("none", "under_way") and is_recording_folder(line["folder"]):
                harms = (
                    one["action"] is None and Finding(kind=one["kind"], key="", detail="").harms
                    for one in line["findings"]
                )
                yield line["folder"], any(harms)
