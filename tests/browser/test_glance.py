"""The archive at a glance in a real browser, alone and in a frame as Airflow shows it."""

from __future__ import annotations

import re
import tempfile
import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from include.archive.manifest import MissingPart, ParticipantFacts
from include.archive.stores import LocalStore
from include.provider import archive_page, glance, runs
from include.provider.sweep import Owed, State
from tests.browser.conftest import background_of, broken_rules, in_airflow, is_dark
from tests.include.archive.test_index import MARCH, a_manifest, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Page

# How Airflow 3.3 frames a plugin's page.
FRAME = """<!DOCTYPE html><html class="{theme}" lang="en"><title>Airflow</title><body>
<iframe sandbox="allow-scripts allow-same-origin allow-forms allow-downloads" src="recall/archive/"
title="Recall archive" style="width: 100%; height: 80vh"></iframe></body></html>"""
HOSTILE = (
    "<script>ran = true</script>",
    "'\"><img src=//evil.example/x onerror='ran = true'>",
    "\u202egnp.exe",
    "مريم",
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    archive = LocalStore(root=tmp_path / "archive")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(archive_page, "open_archive", lambda: archive)
    monkeypatch.setattr(glance, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(glance, "PATIENCE", 240.0)
    monkeypatch.setattr(runs, "sweep_state", State)
    monkeypatch.setattr(runs, "states_of", lambda ids: dict.fromkeys(ids, "success"))
    return archive


def served(theme: str = "light") -> AbstractContextManager[str]:
    """Airflow's API server, as far as our page needs it."""
    app = FastAPI()
    app.get("/")(lambda: HTMLResponse(FRAME.format(theme=theme)))
    app.get("/dags/{rest:path}")(lambda rest: HTMLResponse(f"<!DOCTYPE html><title>A run</title><h1>{rest}</h1>"))
    return in_airflow(app)


@pytest.fixture
def visit(new_page: Callable[..., Page]) -> Callable[..., Page]:
    def go(address: str, **options: Any) -> Page:
        page = new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.goto(address)
        return page

    return go


def fill(store: LocalStore, count: int) -> None:
    """Meetings of all kinds, the last with hostile words in it."""
    now = datetime.now(timezone.utc)
    missing = [MissingPart(artifact_id="a", part_id="9", participant_id=1, error_code="media_deleted")]
    people = [ParticipantFacts(id=number, name=name) for number, name in enumerate(HOSTILE)]
    for number in range(count):
        more: dict[str, Any] = {"missing": missing} if number % 5 == 3 else {}
        more |= {"participants": people, "title": HOSTILE[number % 4] * 3} if number % 6 == 5 else {}
        put(store, a_manifest(f"rec-{number:03}", at=now - timedelta(hours=9 * number), parts=number % 4, **more))
    if count:
        store.put_if_absent("dt=2026-03-08/recording=open/participant=1/a/1.wav", b"x", "audio/wav")
        store.put_if_absent("dt=2026-03-08/recording=broken/manifest.json", b"{", "application/json")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("count", "width"), [(0, 1280), (12, 1280), (12, 390), (120, 1280)])
def test_no_accessibility_rule_is_broken(
    visit: Callable[..., Page], store: LocalStore, monkeypatch: pytest.MonkeyPatch, scheme: str, count: int, width: int
) -> None:
    fill(store, count)
    now = datetime.now(timezone.utc)
    owed = {"rec-owed": Owed(int(now.timestamp()), int(now.timestamp()) + 3600, True)}
    monkeypatch.setattr(runs, "sweep_state", lambda: State(now, owed if count else {}))
    with served() as address:
        page = visit(f"{address}/recall/archive/", color_scheme=scheme, viewport={"width": width, "height": 844})
        assert broken_rules(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert is_dark(background_of(page.locator("body"))) == (scheme == "dark")
        for show in ("owed", "lost"):
            page.goto(f"{address}/recall/archive/?show={show}")
            assert broken_rules(page) == []
        assert page.evaluate("[ran, violations]") == [False, []]


def test_hostile_words_are_inert(visit: Callable[..., Page], store: LocalStore) -> None:
    fill(store, 30)
    with served() as address:
        asked: list[str] = []
        page = visit("about:blank")
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/recall/archive/")
        page.fill("#q", HOSTILE[1])
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"\?q="))
        assert page.input_value("#q") == HOSTILE[1]
        assert page.locator("tbody tr").count() > 0
        page.wait_for_timeout(200)
        assert page.evaluate("[ran, violations]") == [False, []]
        assert all(one.startswith(address) for one in asked)


def test_searching_filtering_and_paging_by_keyboard(visit: Callable[..., Page], store: LocalStore) -> None:
    fill(store, 120)
    with served() as address:
        page = visit(f"{address}/recall/archive/")

        def tab_to(selector: str) -> None:
            for _ in range(120):
                page.keyboard.press("Tab")
                if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                    return
            raise AssertionError(f"no way to {selector}")

        tab_to("#q")
        page.keyboard.type("rec-01")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"q=rec-01"))
        assert page.locator("tbody tr").count() == 10
        tab_to(".chips a[href*='show=nothing_to_archive']")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"show=nothing"))
        assert page.locator(".chips [aria-current]").inner_text().startswith("No audio")
        assert page.locator("tbody tr").count() == 2
        tab_to(".clear")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"archive/$"))
        assert page.locator("tbody tr").count() == 50
        tab_to(".pager a")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"page=2"))
        assert page.locator(".pager span").first.inner_text()
        tab_to(".meeting a")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"/dt=.*/recording=.*/$"))
        assert page.locator("h1").count() == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_airflow_s_frame(visit: Callable[..., Page], store: LocalStore, theme: str) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    fill(store, 12)
    opposite = "light" if theme == "dark" else "dark"
    with served(theme) as address:
        page = visit(address, color_scheme=opposite)
        frame = page.frame_locator("iframe")
        assert frame.locator("tbody tr").count() == 14
        background = background_of(frame.locator("body"))
        assert is_dark(background) == (theme == "dark"), "as Airflow's own pages"
        page.evaluate("(theme) => { document.documentElement.className = theme }", opposite)
        expect(frame.locator("body")).not_to_have_css("background-color", background)
        frame.locator("#q").fill("rec-001")
        frame.locator("form button").click()
        expect(frame.locator("tbody tr")).to_have_count(1)
        frame.locator(".meeting a").click()
        frame.locator("h1", has_text="rec-001").wait_for()
        page.goto(address)
        frame.locator(".run a").first.click()
        page.wait_for_url(re.compile(f"{address}/dags/archive_meeting/runs/recording__rec-"))
        assert page.locator("iframe").count() == 0, "Airflow's own page is not shown within Airflow"


def test_a_view_that_is_built_completes_before_one_s_eyes(
    visit: Callable[..., Page], store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(3):
        put(store, a_manifest(f"rec-{day}", at=MARCH + timedelta(days=day)))
    held, listing = threading.Event(), LocalStore.each_folder

    def hold(self: LocalStore, folder: str, name: str) -> Any:
        if folder == "dt=2026-03-04":
            assert held.wait(240)
        yield from listing(self, folder, name)

    monkeypatch.setattr(LocalStore, "each_folder", hold)
    monkeypatch.setattr(glance, "PATIENCE", 0.2)
    try:
        with served() as address:
            keeper = glance.keeper_of(archive_page.open_archive)
            keeper.look()
            while keeper.index.standing().days != (2, 3):
                threading.Event().wait(0.05)
            page = visit(f"{address}/recall/archive/")
            page.get_by_text("Being built: 2 of 3 days").wait_for()
            assert page.locator("tbody tr").count() == 2
            assert broken_rules(page) == []
            held.set()
            page.get_by_text("All of it as of").wait_for()
            assert page.locator("tbody tr").count() == 3
    finally:
        held.set()


def test_looking_again_finds_what_is_new(visit: Callable[..., Page], store: LocalStore) -> None:
    fill(store, 60)
    with served() as address:
        page = visit(f"{address}/recall/archive/?q=rec-0&page=2")
        assert page.locator("tbody tr").count() == 10
        put(store, a_manifest("rec-0-new", at=datetime.now(timezone.utc)))
        page.get_by_role("link", name="Look again").click()
        page.get_by_text("51–61 of 61").wait_for()
        assert page.locator("tbody tr").count() == 11


def test_without_script_all_of_it_works(visit: Callable[..., Page], store: LocalStore) -> None:
    fill(store, 60)
    with served() as address:
        page = visit(f"{address}/recall/archive/", java_script_enabled=False)
        page.fill("#q", "rec-00")
        page.click("form button")
        assert page.locator("tbody tr").count() == 10
        page.click(".run a >> nth=0")
        assert page.title() == "A run"
