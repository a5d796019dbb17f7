"""A browser for the tests of this folder: the machine's own Chromium, since nothing is ever downloaded."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from include.provider import archive_page
from tests.plugins import conftest  # noqa: F401 - Airflow's server, imported without its warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI
    from playwright.sync_api import Browser, Locator, Page

# Counts what a page's policy forbids, and shows whether anything hostile ran.
WATCH = """
window.violations = []; window.ran = false;
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


@cache
def installed_chromium() -> str | None:
    """Return where the machine has its Chromium."""
    for path in filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        # Ubuntu has a script of that name that only tells how to install one.
        if subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0:
            return path
    return None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    path = installed_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    playwright.expect.set_options(timeout=120_000)
    with playwright.sync_playwright() as running:
        # The sandbox of Chromium doesn't work for root, as whom tests in containers often run.
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--mute-audio"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return what opens an empty page that is watched; options are those of a browser's context."""
    contexts = []

    def new(**options: Any) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1120, "height": 800}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.add_init_script(WATCH)
        return page

    yield new
    for context in contexts:
        context.close()


@contextmanager
def in_airflow(app: FastAPI) -> Iterator[str]:
    """Serve the archive's pages in an app, as Airflow's API server does to whom it lets; the value is its address."""
    app.include_router(archive_page.router, prefix="/recall")
    app.dependency_overrides = {archive_page.may_read: lambda: None}
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def broken_rules(page: Page) -> list[Any]:
    """Return which rules of accessibility a page breaks, and where."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make setup")
    found = axe.Axe().run(page)
    assert found.response["passes"], "axe has looked"
    return [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]]


def background_of(body: Locator) -> str:
    return str(body.evaluate("(body) => getComputedStyle(body).backgroundColor"))


def is_dark(colour: str) -> bool:
    """Tell whether a colour of CSS, such as ``rgb(1, 2, 3)``, is a dark one."""
    return max(map(int, re.findall(r"\d+", colour))) < 64
