"""What all pages about the archive write in one way."""

from __future__ import annotations

import re
from html import escape

_MOST_CHARACTERS = 500
# What would reorder, break or hide the text around it, and halves of characters, which no encoding can carry.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def text(value: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a value as text that is nothing but text, wherever in the page it stands."""
    short = value if len(value) <= most else value[:most] + "…"
    return escape(_UNFIT.sub(lambda found: f"\\u{ord(found.group()):04x}", short))


def size(count: int) -> str:
    """Return bytes as a person reads them, in powers of ten."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
