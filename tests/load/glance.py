"""The archive at a glance with 100,000 meetings: how long its index takes, and how fast its page answers.

    python -m tests.load.glance
    python -m tests.load.glance --meetings 10000 --keep /tmp/an-archive

Manifests of a year and a half are written into a folder, without their audio; people of a thousand names, half of the
meetings verified. Then the index is built as the API server builds it, resting included, while pages are asked for; and
refreshed with nothing new, with one new meeting, and by a process that finds it there. Figures go to the output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.archive.index import Index
from include.archive.layout import recording_folder
from include.archive.manifest import Manifest, MissingPart, PartEntry, ParticipantFacts, RecordingFacts
from include.archive.stores import LocalStore
from include.provider import glance, glance_html, runs
from include.provider.sweep import Owed, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LAST = datetime(2026, 11, 20, 17, tzinfo=timezone.utc)
DAYS = 540
PARTS = 8
FIRST_NAMES = ("Ada", "Grace", "Noor", "Linus", "Mei", "Olu", "Zoë", "Ivan", "Chloé", "Hiro", "Amir", "Sofia", "Tomás")
LAST_NAMES = ("Lovelace", "Hopper", "Rahman", "Okafor", "Chen", "Novák", "García", "Tanaka", "Haddad", "Smith", "Ek")
SUBJECTS = ("Planning", "Customer call", "Interview", "Stand-up", "Budget", "Retrospective", "Onboarding", "All hands")
CUSTOMERS = ("Northwind", "Contoso", "Initech", "Umbrella", "Stark", "Wayne", "Acme", "Globex", "Hooli", "Soylent")
PLATFORMS = ("zoom", "google_meet", "microsoft_teams", "webex")
QUERIES: dict[str, Mapping[str, str]] = {
    "newest page": {},
    "page 1,000": {"page": "1000"},
    "a name": {"q": "lovelace"},
    "a rare word": {"q": "northwind budget tanaka"},
    "a recording id": {"q": "%ID%"},
    "a month": {"from": "2026-05-01", "to": "2026-05-31"},
    "with gaps": {"show": "archived_with_gaps"},
    "nothing found": {"q": "nobody was here"},
}


def fill(root: Path, meetings: int, random: random.Random) -> list[str]:
    """Write manifests; return the recordings' folders."""
    folders = []
    for number in range(meetings):
        at = LAST - timedelta(seconds=DAYS * 86400 * number / meetings)
        document = manifest(number, at, random)
        folder = recording_folder(at, document["recording"]["id"])
        path = root / folder
        path.mkdir(parents=True)
        (path / "manifest.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        folders.append(folder)
    return folders


def manifest(number: int, at: datetime, random: random.Random) -> dict[str, Any]:
    """Return what a manifest holds."""
    ids = [f"{random.getrandbits(32):08x}-{number:04x}-4000-8000-{random.getrandbits(48):012x}" for _ in range(3)]
    people = [
        ParticipantFacts(id=100 + one, name=f"{random.choice(FIRST_NAMES)} {random.choice(LAST_NAMES)}")
        for one in range(random.randint(2, 6))
    ]
    count = random.choice((0, PARTS, PARTS, PARTS, PARTS, PARTS, PARTS, PARTS, 2 * PARTS, 3 * PARTS))
    entries = []
    for part in range(count):
        seconds = round(random.uniform(20, 900), 3)
        who = random.choice(people).id
        entries.append(
            PartEntry(
                artifact_id=ids[1],
                part_id=f"{part:08x}-0000-5000-8000-{number:012x}",
                participant_id=who,
                start_relative_seconds=300.0 * part,
                start_absolute=at + timedelta(seconds=300 * part),
                duration_seconds=seconds,
                key=f"participant={who}/{ids[1]}/{part:08x}-0000-5000-8000-{number:012x}.wav",
                bytes=int(32_000 * seconds) + 44,
                sha256=f"{random.getrandbits(256):064x}",
                media_type="audio/wav",
                source_format="raw",
                source_bytes=int(32_000 * seconds),
                source_sha256=f"{random.getrandbits(256):064x}",
                verified_by=["content-length", "read-back"],
                warnings=["pcm_format_assumed"],
            )
        )
    gone = [MissingPart(artifact_id=ids[1], part_id="x", participant_id=100, error_code="media_deleted")]
    recording = RecordingFacts(
        id=ids[0],
        created_at=at,
        bot_id=ids[2],
        started_at=at,
        title=f"{random.choice(SUBJECTS)} {random.choice(CUSTOMERS)}",
        platform=random.choice(PLATFORMS),
    )
    missing = gone if number % 40 == 7 and entries else []
    return Manifest.build(recording=recording, participants=people, parts=entries, missing=missing).to_dict()


def verify(store: LocalStore, folders: list[str]) -> None:
    """Leave the report of a verification that has looked at some recordings."""
    name = f"{datetime.now(timezone.utc):%Y%m%dt%H%M%Sz}-0a1b2c"
    lines = (json.dumps({"folder": folder, "state": "settled", "findings": []}) + "\n" for folder in folders)
    details = f"reports/verify/{name}/00-0123abcd.jsonl"
    store.put_if_absent(details, "".join(lines).encode(), "application/x-ndjson")
    document = {
        "report_version": 1,
        "complete": True,
        "scope": {"recording_id": None},
        "began_at": (datetime.now(timezone.utc) + timedelta(seconds=1)).isoformat(),
        "details": [details],
    }
    store.put_if_absent(f"reports/verify/{name}/report.json", json.dumps(document).encode(), "application/json")


def ask(store: LocalStore, params: Mapping[str, str]) -> tuple[float, int]:
    """Answer as the server does; return the seconds that took, and how many bytes came of it."""
    began = time.perf_counter()
    page = glance_html.page(glance.view(params, lambda: store))
    return time.perf_counter() - began, len(page.encode())


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def report(name: str, seconds: list[float], size: int = 0) -> None:
    p50, p99 = 1000 * statistics.median(seconds), 1000 * percentile(seconds, 0.99)
    more = f"  {size / 1000:.0f} kB" if size else ""
    print(f"  {name:<34} p50 {p50:8.1f} ms  p99 {p99:8.1f} ms  of {len(seconds)}{more}", flush=True)


def resident() -> float:
    """MB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


@contextlib.contextmanager
def ticking() -> Iterator[list[float]]:
    """Note how late a thread that wants the interpreter every 5 ms gets it, as an event loop would."""
    late: list[float] = []
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.is_set():
            began = time.perf_counter()
            time.sleep(0.005)
            late.append(time.perf_counter() - began - 0.005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield late
    finally:
        is_over.set()
        thread.join()


def measure(root: Path, meetings: int, rounds: int) -> None:
    store, dice = LocalStore(root=root), random.Random(7)
    began = time.monotonic()
    folders = fill(root, meetings, dice)
    print(f"{meetings:,} manifests written in {time.monotonic() - began:.0f} s", flush=True)
    verify(store, folders[: meetings // 2])
    now = int(time.time())
    owed = {f"owed-{number}": Owed(now - 3600, now + 3600 * number, True) for number in range(1, 41)}
    runs.sweep_state = lambda: State(datetime.now(timezone.utc), owed)
    runs.states_of = lambda recording_ids: dict.fromkeys(recording_ids, "success")
    before = resident()
    with ticking() as late:
        began, asked = time.monotonic(), []
        keeper = glance.keeper_of(lambda: store)
        while keeper.index.standing().complete_at is None:
            asked.append(ask(store, {})[0])
            time.sleep(0.5)
        took = time.monotonic() - began
    print(f"first build, resting included: {took:.1f} s, memory {before:.0f} to {resident():.0f} MB", flush=True)
    report("a page meanwhile", asked)
    report("a thread every 5 ms, how late", late)
    while not keeper.index.judged():
        time.sleep(0.1)
    print(
        f"the index: {sum(one.stat().st_size for one in keeper.index.path.parent.iterdir()) / 1e6:.0f} MB", flush=True
    )
    some = folders[meetings // 3].rpartition("=")[2]
    pages = {name: {key: value.replace("%ID%", some) for key, value in one.items()} for name, one in QUERIES.items()}
    print("pages, the archive listed again as often as it is due:", flush=True)
    everything: list[float] = []
    for name, params in pages.items():
        seconds, size = [], 0
        for _ in range(rounds):
            keeper.index._totals.clear()  # what another page has summed up doesn't help this one
            one, size = ask(store, params)
            seconds.append(one)
        report(name, seconds, size)
        everything += seconds
    report("all of them", everything)
    print("refreshing, without rests:", flush=True)
    time.sleep(1.0)
    for name, complete in (("of all, nothing new", True), ("of the last week", False)):
        began = time.monotonic()
        assert keeper.index.refresh(store, complete=complete)
        print(f"  {name:<34} {time.monotonic() - began:.2f} s", flush=True)
    document = manifest(meetings + 1, datetime.now(timezone.utc), dice)
    path = root / recording_folder(datetime.now(timezone.utc), document["recording"]["id"])
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(document))
    began = time.monotonic()
    assert keeper.index.refresh(store, complete=False)
    assert keeper.index.ask(glance.Query(document["recording"]["id"])).meetings
    print(f"  {'one new meeting, until it is found':<34} {time.monotonic() - began:.2f} s", flush=True)
    print(f"memory at the end: {resident():.0f} MB", flush=True)
    other = Index(store.uri(""))
    began = time.monotonic()
    assert other.ask(glance.Query()).total().meetings == meetings + 1
    print(f"a second process finds it there: first answer after {1000 * (time.monotonic() - began):.0f} ms", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meetings", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=100, help="how often each page is asked for")
    parser.add_argument("--keep", type=Path, help="leave the archive in this folder, which must not exist")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # the index too
        measure(options.keep or Path(folder) / "archive", options.meetings, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
