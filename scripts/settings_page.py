"""Write the table of docs/settings.md from the declarations in the code: `python -m scripts.settings_page`.

The text around the table is written by hand.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from include.provider import settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- settings -->\n\n", "\n<!-- end of settings -->"


def table() -> str:
    """Return all settings as a table in Markdown."""
    rows = [["Variable", "default", "takes", "meaning"], ["---"] * 4, *map(_row, settings.SETTINGS)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(text: str) -> str:
    """Return the page with its table as it must be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def _row(setting: settings.Setting[Any]) -> list[str]:
    takes = (setting.parse.__doc__ or "").strip()
    if not takes.startswith("Take "):
        raise SystemExit(
            f'{setting.name}: its parse function needs a docstring, "Take ….", that says which values it takes'
        )
    more = f" [More]({setting.page})" if setting.page else ""
    return [
        f"`{setting.name}`",
        _default(setting.default),
        _plain(takes.removeprefix("Take ").removesuffix(".")),
        _plain(setting.doc) + more,
    ]


def _default(value: Any) -> str:
    if value in (None, "") or (isinstance(value, (tuple, dict)) and not value):
        return "unset"
    if value == settings.ARCHIVE_URI.default:
        return "the folder `archive` beside `include`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.15g}`"
    if isinstance(value, timedelta):
        return f"`{value.total_seconds():.0f}`"
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


def _plain(text: str) -> str:
    """Escape what Markdown would take for markup."""
    return re.sub(r"([*|\[\]])", r"\\\1", text).replace("<", "&lt;")


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
