"""What `make docs` does beyond mkdocs: pages that are kept elsewhere in the project, and links that leave docs/.

The pages of docs/ are read in the repository as well, where they link to files of the project. In the site such a link
leads to a page of that file's text.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "simulator.md": "include/simulator/README.md",
}
"""Pages of the site by where they are kept in the project."""

_PAGES = {kept: page for page, kept in ELSEWHERE.items()}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_LANGUAGES = {".env": "ini", ".json": "json", ".py": "python", ".yaml": "yaml", ".yml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are kept elsewhere, and one for each file that a page links to."""
    for page, kept in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(PROJECT / kept).read_text("utf-8")))
    linked: set[str] = set()
    for file in files.documentation_pages():
        _relinked(file.content_string, file.src_uri, linked.add)
    for path in sorted(linked):
        files.append(File.generated(config, _source_page(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to pages of the site."""
    return _relinked(markdown, page.file.src_uri)


def _relinked(text: str, page: str, found: Callable[[str], object] = lambda path: None) -> str:
    """Rewrite a page's links to files of the project.

    :param page: where it is in the site.
    :param found: called with each file that is no page of its own.
    """
    folder = os.path.dirname(ELSEWHERE.get(page, f"docs/{page}"))
    here = os.path.dirname(page)

    def rewritten(link: re.Match[str]) -> str:
        image, words, target, anchor = link[1], link[2], link[3], link[4] or ""
        path = os.path.normpath(os.path.join(folder, target))
        if ":" in target or path.startswith("..") or not (PROJECT / path).exists():
            return link[0]
        if path in _PAGES:
            place = _PAGES[path]
        elif path.startswith("docs/"):
            place = path.removeprefix("docs/")
        elif (PROJECT / path).is_file():
            found(path)
            place = _source_page(path)
        else:
            return words  # a folder has no page
        return f"{image}[{words}]({os.path.relpath(place, here or '.')}{anchor})"

    return _LINK.sub(rewritten, text)


def _source_page(path: str) -> str:
    return f"source/{path}.md"


def _shown(path: str) -> str:
    """Return a page that shows a file's text."""
    text = (PROJECT / path).read_text("utf-8")
    fence = "~" * max(4, 1 + max(map(len, re.findall(r"^~+", text, re.MULTILINE)), default=0))
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
