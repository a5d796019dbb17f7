"""The documentation's site is built without a warning, holds every page, and fetches nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import markdown
import pytest
import yaml
from markdown_it import MarkdownIt

from scripts import docs_site

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
KEPT = {page: ROOT / path for page, path in docs_site.ELSEWHERE.items()}
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "audio": "src", "video": "src"}


def config() -> dict:
    """Read mkdocs.yml; what it says in Python's own words is left out."""
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))


def pages_of(nav: list | dict | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(one)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """What a page of the site loads and links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if (anchor := given.get("id")) is not None:
            self.anchors.add(anchor)
        if (loaded := given.get(LOADED.get(tag, ""))) and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(loaded)
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))


def test_every_page_is_in_the_navigation() -> None:
    listed = pages_of(config()["nav"])
    lacking = {str(path.relative_to(ROOT / "docs")) for path in PAGES} - set(listed)
    assert not lacking, f"mkdocs.yml must list these pages under nav: {sorted(lacking)}"
    assert len(listed) == len(set(listed))
    unlisted = [path.name for path in PAGES if f"docs/{path.name}" not in (ROOT / "README.md").read_text("utf-8")]
    assert not unlisted, f"the README must list these pages under Documentation: {unlisted}"


def test_every_link_and_image_is_there_and_nothing_comes_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > len(PAGES)
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses are those of a server
            continue
        for address in page.loads:
            assert not urlsplit(address).netloc, f"{path.name} fetches {address}"
        for address in page.loads + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file() or (target / "index.html").is_file(), f"{path.name} links to {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name} links to {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text("utf-8")), style.name


def test_pages_are_made_of_what_is_kept_elsewhere_and_of_docstrings(site: Path) -> None:
    def text(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (site / page).read_text("utf-8"))

    assert "Recall audio archive" in text("index.html")
    assert "/_sim/" in text("simulator.html")
    assert '"manifest_version"' in text("source/include/archive/manifest.v1.schema.json.html").replace("&quot;", '"')
    reference = text("reference.html")
    for words in ("Wait until every recording of a bot is settled", "wait_timeout", "one event per settled recording"):
        assert words.lower() in reference.lower(), words
    assert not re.search(r":(class|meth|func|mod|data):", reference)
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


@pytest.mark.parametrize("path", [*PAGES, *KEPT.values()], ids=lambda path: path.name)
def test_a_page_has_the_same_parts_in_the_repository_and_in_the_site(path: Path) -> None:
    """Both kinds of Markdown understand lists, code and tables alike: the site's wants lists set off, for one."""
    text = path.read_text("utf-8")
    rendered = markdown.markdown(text, extensions=[one for one in extensions() if one != "attr_list"])
    tokens = [token.type for token in MarkdownIt("commonmark").enable("table").parse(text)]
    for tag, kinds in {
        "li": ("list_item_open",),
        "pre": ("fence", "code_block"),
        "table": ("table_open",),
        "tr": ("tr_open",),
        "h2": ("heading_open",),
    }.items():
        expected = sum(tokens.count(kind) for kind in kinds)
        pattern = r"<h[1-6][ >]" if tag == "h2" else rf"<{tag}[ >]"
        assert len(re.findall(pattern, rendered)) == expected, f"{path.name} has {tag} that the site shows otherwise"


def extensions() -> list[str]:
    return [one if isinstance(one, str) else next(iter(one)) for one in config()["markdown_extensions"]]
