"""The page of a meeting in a real browser: it plays, in sync, by mouse and by keyboard; hostile names stay names."""

from __future__ import annotations

import io
import math
import re
import struct
import threading
import time
import wave
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from include.archive import meeting_page
from include.archive.manifest import Manifest, MissingPart, PartEntry, ParticipantFacts, RecordingFacts
from include.archive.stores import LocalStore
from include.provider import archive_page
from tests.browser.conftest import background_of, broken_rules, in_airflow, is_dark

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Locator, Page

FOLDER = "dt=2026-03-04/recording=rec-1"
# Keeps the players that the page makes.
KEEP_SOUNDS = """
window.sounds = [];
const Sound = window.Audio;
window.Audio = function () { const sound = new Sound(); window.sounds.push(sound); return sound; };
"""
# What sounds now: each player's address, and to which moment of the meeting it has come.
SOUNDING = """
() => sounds.filter((sound) => !sound.paused && sound.src).map((sound) => {
  const rows = [...document.querySelectorAll(".parts li[data-at]")];
  const { who, at } = rows.find((one) => one.querySelector("a").href === sound.src).dataset;
  const clock = +document.querySelector(".seek").getAttribute("aria-valuenow");
  return { who: +who, moment: +at + sound.currentTime, muted: sound.muted, volume: sound.volume, clock };
})
"""


@cache
def tone(seconds: float, hertz: int = 330, rate: int = 8000) -> bytes:
    body = io.BytesIO()
    with wave.open(body, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        second = struct.pack(f"<{rate}h", *(int(9000 * math.sin(math.tau * hertz * at / rate)) for at in range(rate)))
        sound.writeframes((second * (int(seconds) + 1))[: 2 * int(seconds * rate)])
    return body.getvalue()


@dataclass
class Meeting:
    """A meeting in an archive in a folder."""

    root: Path
    title: str = "Planning"
    people: list[ParticipantFacts] = field(default_factory=list)
    parts: list[PartEntry] = field(default_factory=list)
    missing: list[MissingPart] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    def add(self, who: int, at: float, seconds: float, *, is_there: bool = True) -> None:
        key = f"participant={who}/a/{len(self.parts)}.wav"
        data = tone(seconds)
        if is_there:
            (self.folder / key).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / key).write_bytes(data)
        self.parts.append(
            PartEntry(
                artifact_id="a",
                part_id=str(len(self.parts)),
                participant_id=who,
                start_relative_seconds=at,
                start_absolute=None,
                duration_seconds=seconds,
                key=key,
                bytes=len(data),
                sha256="0" * 64,
                media_type="audio/wav",
                source_format="raw",
                source_bytes=len(data),
                source_sha256="0" * 64,
                verified_by=["content-length"],
                warnings=[],
            )
        )

    def write(self) -> str:
        manifest = Manifest.build(
            recording=RecordingFacts(
                id="rec-1", created_at=datetime(2026, 3, 4, tzinfo=timezone.utc), title=self.title, platform="zoom"
            ),
            participants=self.people,
            parts=self.parts,
            missing=self.missing,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "manifest.json").write_bytes(manifest.to_bytes())
        store = LocalStore(root=self.root)
        meeting_page.write(store, FOLDER, manifest)
        return (self.folder / "meeting.html").as_uri()


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    """Three people who talk at once from 5 to 20 s, one who comes early, then silence, then one again."""
    names = ("Ada Lovelace", "Grace Hopper", "Noor Rahman")
    made = Meeting(tmp_path, people=[ParticipantFacts(id=n, name=name) for n, name in enumerate(names, 1)])
    for who, at, seconds in ((1, -2.0, 22.0), (2, 3.25, 17.0), (3, 5.0, 15.5), (1, 40.0, 12.0)):
        made.add(who, at, seconds)
    return made


@pytest.fixture
def talk(tmp_path: Path) -> Meeting:
    """Three people who talk at once for minutes, so that a slow machine finds them talking."""
    names = ("Ada Lovelace", "Grace Hopper", "Noor Rahman")
    made = Meeting(tmp_path, people=[ParticipantFacts(id=n, name=name) for n, name in enumerate(names, 1)])
    for who, at in ((1, -2.0), (2, 3.25), (3, 5.0)):
        made.add(who, at, 300.0)
    return made


@dataclass
class Visit:
    """A page in a browser, and all that it said and asked for."""

    page: Page
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def sounding(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.page.evaluate(SOUNDING)
        return found

    def until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(1200):
            if is_so():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"never so; sounding {self.sounding()}, said {self.said}")

    def in_step(self) -> bool:
        """Tell whether, for two seconds, all three sound within 50 ms of each other and where the clock is."""
        for _ in range(10):
            sounding = self.sounding()
            moments = [one["moment"] for one in sounding]
            if len(moments) != 3 or max(moments) - min(moments) >= 0.05:
                return False
            if abs(moments[0] - sounding[0]["clock"]) >= 0.2:
                return False
            self.page.wait_for_timeout(200)
        return True

    @property
    def at(self) -> float:
        return float(self.page.locator(".seek").get_attribute("aria-valuenow") or "nan")

    def click_at(self, seconds: float, place: Locator | None = None) -> None:
        """Click where a moment is on the timeline."""
        begin, end = (
            float(self.page.locator("[data-begin]").get_attribute(f"data-{x}") or 0) for x in ("begin", "end")
        )
        place = place or self.page.locator(".seek")
        place.scroll_into_view_if_needed()  # the mouse can't reach what is out of sight
        box = place.bounding_box()
        assert box is not None
        x = box["x"] + box["width"] * (seconds - begin) / (end - begin)
        self.page.mouse.click(x, box["y"] + box["height"] / 2)


@pytest.fixture
def visit(new_page: Callable[..., Page]) -> Callable[..., Visit]:
    def go(address: str, **options: Any) -> Visit:
        page = new_page(**options)
        page.add_init_script(KEEP_SOUNDS)
        seen = Visit(page)
        page.on("request", lambda request: seen.asked.append(request.url))
        page.on("console", lambda message: seen.said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        return seen

    return go


# -- playing ---------------------------------------------------------------------------------------------------------


def test_everybody_plays_in_sync(visit: Callable[..., Visit], talk: Meeting) -> None:
    seen = visit(talk.write())
    seen.click_at(10.0)
    assert seen.at == pytest.approx(10.0, abs=0.4)
    assert seen.sounding() == []
    seen.page.click(".play")
    seen.until(seen.in_step)
    assert all(one["volume"] == 1 and not one["muted"] for one in seen.sounding())
    seen.page.click(".play")
    seen.until(lambda: seen.sounding() == [])
    assert [one for one in seen.said if "dialog" in one or "error" in one] == []


def test_a_stray_player_is_pulled_back(visit: Callable[..., Visit], talk: Meeting) -> None:
    seen = visit(talk.write())
    seen.click_at(10.0)
    seen.page.click(".play")
    seen.until(lambda: len(seen.sounding()) == 3)
    seen.page.evaluate("sounds[1].currentTime += 3; sounds[2].currentTime -= 0.15")
    seen.until(seen.in_step)


def test_one_part_plays_alone_and_ends(visit: Callable[..., Visit], meeting: Meeting) -> None:
    meeting.add(2, 30.0, 100.0)
    seen = visit(meeting.write())
    rows = seen.page.locator(".parts li")
    row = rows.filter(has_text="0:30.0")
    row.get_by_role("button").click()
    seen.until(lambda: len(seen.sounding()) == 1)
    assert seen.sounding()[0]["who"] == 2
    assert row.get_by_role("button").inner_text() == "Pause"
    assert seen.page.locator(".whose").inner_text().startswith("Grace Hopper, the part at 0:30.0")
    seen.click_at(128.0)
    seen.until(lambda: seen.sounding() == [])
    assert seen.at == pytest.approx(130.0, abs=0.1)
    assert row.get_by_role("button").inner_text() == "Play"
    seen.page.get_by_role("button", name="Everyone").click()
    assert seen.page.locator(".whose b").inner_text() == "Everyone"


def test_clicking_a_lane_seeks_while_it_plays(visit: Callable[..., Visit], meeting: Meeting) -> None:
    meeting.add(1, 52.0, 200.0)
    seen = visit(meeting.write())
    seen.page.click(".play")
    seen.until(lambda: bool(seen.sounding()))
    seen.click_at(45.0, seen.page.locator(".track").nth(1))

    def plays_there() -> bool:
        sounding = seen.sounding()
        return [(one["who"], one["moment"] > 45, abs(one["moment"] - one["clock"]) < 0.3) for one in sounding] == [
            (1, True, True)
        ]

    seen.until(plays_there)
    seen.click_at(25.0)
    began = time.monotonic()
    seen.until(lambda: seen.sounding() == [])
    seen.until(lambda: seen.at > 25.3)  # the clock goes on in silence
    seen.page.check("#skip")
    seen.until(lambda: len(seen.sounding()) == 1)
    assert 39.5 < seen.at < 42 + time.monotonic() - began


def test_negative_time_plays_and_speed_counts(visit: Callable[..., Visit], talk: Meeting) -> None:
    seen = visit(talk.write())
    assert seen.page.locator(".clock b").inner_text() == "−0:02"
    seen.page.select_option("#speed", "2")
    seen.page.click(".play")
    seen.until(lambda: len(seen.sounding()) == 1)

    def twice_as_fast() -> bool:
        read = '() => [performance.now() / 1000, +document.querySelector(".seek").getAttribute("aria-valuenow")]'
        began, before = seen.page.evaluate(read)
        seen.page.wait_for_timeout(2000)
        ended, after = seen.page.evaluate(read)
        first = seen.sounding()[0]
        return 1.5 < (after - before) / (ended - began) < 2.5 and abs(first["moment"] - first["clock"]) < 0.2

    seen.until(twice_as_fast)


def test_all_wait_for_one_that_still_loads(visit: Callable[..., Visit], talk: Meeting) -> None:
    talk.write()
    opened = threading.Event()
    with serving(talk.root, slow="a/1.wav", opened=opened) as (address, _):
        seen = visit(f"{address}/{FOLDER}/meeting.html")
        seen.click_at(10.0)
        place = seen.at
        seen.page.click(".play")
        seen.until(lambda: seen.page.locator("[role=status]").inner_text() == "Waiting for audio")
        seen.page.wait_for_timeout(1500)
        assert seen.sounding() == []
        assert seen.at == pytest.approx(place, abs=0.2)
        began = time.monotonic()
        opened.set()
        seen.until(seen.in_step)
        assert seen.at < place + time.monotonic() - began + 1, "it went on from where it waited"


def test_a_part_that_is_gone_does_not_stop_the_others(visit: Callable[..., Visit], talk: Meeting) -> None:
    talk.add(3, 10.0, 200.0, is_there=False)
    seen = visit(talk.write())
    seen.click_at(20.0)
    seen.page.click(".play")
    seen.until(lambda: len(seen.sounding()) == 3)
    seen.until(lambda: "without 1 part" in seen.page.locator("[role=status]").inner_text())


def test_only_what_is_due_is_loaded(visit: Callable[..., Visit], tmp_path: Path) -> None:
    """A long meeting loads a few seconds ahead, and lets go of what is over."""
    long = Meeting(tmp_path, people=[ParticipantFacts(id=1, name="Ada")])
    for number in range(300):
        long.add(1, number * 30.0, 3.0)
    seen = visit(long.write())
    assert [one for one in seen.asked if one.endswith(".wav")] == []
    for at in (3000, 6000, 8970):
        seen.click_at(at)
        seen.page.click(".play")
        seen.page.wait_for_timeout(400)
        seen.page.click(".play")
    assert len({one for one in seen.asked if one.endswith(".wav")}) <= 8
    assert seen.page.evaluate("sounds.filter((sound) => sound.getAttribute('src')).length") <= 2


# -- the keyboard ----------------------------------------------------------------------------------------------------


def test_everything_works_by_keyboard(visit: Callable[..., Visit], talk: Meeting) -> None:
    seen = visit(talk.write())
    keys = seen.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            keys.press("Tab")
            if seen.page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no way to {selector}")

    tab_to(".play")
    keys.press("Space")
    seen.until(lambda: len(seen.sounding()) == 1)
    tab_to("[role=slider]")
    began = time.monotonic()
    keys.press("Home")
    assert -2.1 < seen.at < -1 + time.monotonic() - began
    # At the end it stands still, wherever one goes from there.
    for key, place in (("End", 305), ("Home", -2), ("PageUp", 58), ("PageUp", 118), ("ArrowRight", 123), ("Home", -2)):
        keys.press(key)
        assert seen.at == pytest.approx(place, abs=0.1), key
    keys.press("PageUp")
    keys.press("Space")
    slider = seen.page.locator("[role=slider]")
    assert re.fullmatch(
        r".+ seconds? of 5 minutes 5 seconds, Ada Lovelace, Grace Hopper, Noor Rahman",
        slider.get_attribute("aria-valuetext") or "",
    )
    tab_to(".only[id=only-3]")
    keys.press("Enter")
    seen.until(lambda: [one["who"] for one in seen.sounding()] == [3])
    assert seen.page.get_by_role("button", name="Only Noor Rahman").get_attribute("aria-pressed") == "true"
    tab_to("a[download]")
    assert seen.page.evaluate("document.activeElement.href").endswith(".wav")


# -- hostile and right-to-left names ---------------------------------------------------------------------------------

HOSTILE = [
    "<script>ran = true; alert(1)</script>",
    "'\"><img src=//evil.example/x onerror=alert(1)>",
    "</title></style></script><svg onload=alert(1)>",
    "\u202egnp.exe\u2066",
    "مريم السعيد",
    "דנה לוי",
    "x" * 300,
    "Z\u0351\u036b\u0343\u036a" * 30,
    "javascript:alert(1)",
]


@pytest.fixture
def hostile(tmp_path: Path) -> Meeting:
    people = [ParticipantFacts(id=n, name=name, email=name, platform=name) for n, name in enumerate(HOSTILE)]
    made = Meeting(tmp_path, title=HOSTILE[2] + HOSTILE[0], people=people)
    for number in range(len(HOSTILE)):
        made.add(number, 2.0 * number, 4.0)
    made.missing = [
        MissingPart(artifact_id=name, part_id=name, participant_id=4, error_code=name, message=name) for name in HOSTILE
    ]
    return made


def test_hostile_names_are_inert(visit: Callable[..., Visit], hostile: Meeting) -> None:
    address = hostile.write()
    seen = visit(address)
    for lane in seen.page.locator(".only").all():
        lane.click()
    seen.page.get_by_role("button", name="Everyone").click()
    seen.page.click(".play")
    seen.until(lambda: bool(seen.sounding()))
    for row in seen.page.locator(".parts .listen").all()[:3]:
        row.click()
    assert seen.said == []
    assert seen.page.evaluate("[ran, violations]") == [False, []]
    folder = address.rpartition("/")[0]
    assert [one for one in seen.asked if not one.startswith(folder)] == []
    assert seen.page.locator(".who bdi").first.inner_text() == HOSTILE[0]


def test_the_policy_would_stop_what_slips_through(visit: Callable[..., Visit], meeting: Meeting) -> None:
    path = meeting.write()
    page = meeting.folder / "meeting.html"
    holes = "<script>ran = true</script><img src=x onerror='ran = true'><style>h1 { color: red }</style>"
    page.write_text(page.read_text("utf-8").replace("<main>", f"<main>{holes}"), "utf-8")
    seen = visit(path)
    seen.page.wait_for_timeout(300)
    assert seen.page.evaluate("ran") is False
    assert set(seen.page.evaluate("violations")) == {
        *("script-src-elem", "script-src-attr", "img-src", "style-src-elem")
    }
    assert seen.page.locator(".player").is_visible(), "its own script runs"


def test_right_to_left_names_move_nothing(visit: Callable[..., Visit], hostile: Meeting) -> None:
    seen = visit(hostile.write())
    boxes = [row.bounding_box() for row in seen.page.locator(".lanes .talk").all()]
    assert len({(box["x"], box["width"]) for box in boxes if box}) == 1
    heights = {round(box["height"]) for row in seen.page.locator(".lanes li").all() if (box := row.bounding_box())}
    assert len(heights) == 1
    tracks = {(box["x"], box["width"]) for row in seen.page.locator(".track").all() if (box := row.bounding_box())}
    assert len(tracks) == 1
    times = seen.page.locator(".parts .span").all_inner_texts()
    assert times[4] == "0:08.0 – 0:12.0"


# -- for everybody, everywhere ---------------------------------------------------------------------------------------


def crowd(root: Path, count: int) -> Meeting:
    made = Meeting(root, people=[ParticipantFacts(id=n, name=f"Person {n} of {count}") for n in range(count)])
    for number in range(count):
        made.add(number, 3.0 * number, 5.0)
    made.people.append(ParticipantFacts(id=1000, name="Who never spoke"))
    made.missing = [
        MissingPart(artifact_id="b", part_id=None, participant_id=None, error_code="media_failed", message="it failed")
    ]
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("count", "width"), [(4, 1120), (40, 1120), (4, 390)])
def test_no_accessibility_rule_is_broken(
    visit: Callable[..., Visit], tmp_path: Path, scheme: str, count: int, width: int
) -> None:
    seen = visit(crowd(tmp_path, count).write(), color_scheme=scheme, viewport={"width": width, "height": 844})
    for state in ("at first", "while one plays alone"):
        assert broken_rules(seen.page) == [], state
        seen.page.locator(".only").nth(1).click()
        seen.page.click(".play")
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert is_dark(background_of(seen.page.locator("body"))) == (scheme == "dark")


def test_without_script_all_is_there_but_the_player(visit: Callable[..., Visit], meeting: Meeting) -> None:
    seen = visit(meeting.write(), java_script_enabled=False)
    assert not seen.page.locator(".player").is_visible()
    assert seen.page.locator("a[download]").count() == 4
    assert seen.page.get_by_text("To play this here takes JavaScript").is_visible()
    assert not seen.page.get_by_role("button").filter(visible=True).count()


def test_a_download_is_the_part(visit: Callable[..., Visit], meeting: Meeting) -> None:
    meeting.write()
    with serving(meeting.root) as (address, _):
        seen = visit(f"{address}/{FOLDER}/meeting.html")
        with seen.page.expect_download() as download:
            seen.page.locator("a[download]").first.click()
    assert download.value.suggested_filename == "participant-1-a-0.wav"
    assert download.value.path().read_bytes() == tone(22.0)


class serving:  # noqa: N801 - used like a function
    """A host of files that knows ranges, as a bucket that is a web site does; notes what was asked for.

    ``slow``: how the name of a file ends that is not sent before ``opened`` is set.
    """

    def __init__(self, root: Path, *, slow: str = "", opened: threading.Event | None = None) -> None:
        asked: list[tuple[str, str | None]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                asked.append((self.path, wanted))
                if slow and self.path.endswith(slow) and opened is not None:
                    opened.wait(240)
                data = (root / self.path.lstrip("/")).read_bytes()
                kind = {"html": "text/html; charset=utf-8", "wav": "audio/wav"}.get(self.path.rpartition(".")[2], "x/y")
                first, last = 0, len(data) - 1
                if wanted is not None:
                    begin, _, end = wanted.removeprefix("bytes=").partition("-")
                    first, last = int(begin), min(last, int(end or last))
                self.send_response(200 if wanted is None else 206)
                self.send_header("Content-Type", kind)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(last + 1 - first))
                if wanted is not None:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                self.end_headers()
                self.wfile.write(data[first : last + 1])

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._asked = asked

    def __enter__(self) -> tuple[str, list[tuple[str, str | None]]]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}", self._asked

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def check_it_plays(seen: Visit) -> None:
    seen.click_at(41.0)
    seen.page.click(".play")
    seen.until(lambda: bool(seen.sounding()) and seen.sounding()[0]["moment"] > 41.5)
    seen.click_at(8.0)
    seen.until(lambda: [one["moment"] < 41 for one in seen.sounding()] == [True] * 3)
    assert [one for one in seen.said if "dialog" in one or "error" in one] == []
    assert seen.page.evaluate("violations") == []


def test_it_works_from_a_bucket_that_is_a_web_site(visit: Callable[..., Visit], talk: Meeting) -> None:
    talk.write()
    with serving(talk.root) as (address, asked):
        check_it_plays(visit(f"{address}/{FOLDER}/meeting.html"))
    assert any(wanted for path, wanted in asked if path.endswith(".wav"))


def test_it_works_in_airflow(visit: Callable[..., Visit], talk: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.write()
    (talk.folder / "meeting.html").write_text("<script>ran = true</script>")
    monkeypatch.setattr(archive_page, "open_archive", lambda: LocalStore(root=talk.root))
    with in_airflow(FastAPI()) as address:
        for name in ("", "meeting.html"):
            seen = visit(f"{address}/recall/archive/{FOLDER}/{name}")
            check_it_plays(seen)
            assert seen.page.evaluate("ran") is False, "what the archive keeps is never run on Airflow's address"
            seen.page.close()
