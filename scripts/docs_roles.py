"""Docstrings in the site of `make docs`: what Sphinx calls roles, such as ``:class:`Name```, becomes code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([^`]+)`")


class Roles(Extension):
    """Rewrite the docstrings of all objects as they are loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda role: f"`{_name(role[1], role[2])}`", obj.docstring.value)


def _name(short: str, path: str) -> str:
    return path.rpartition(".")[2] if short else path
