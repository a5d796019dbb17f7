"""Every error code of the code has its entry in docs/troubleshooting.md, and no entry is without a code."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from include.errors import CodedError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/troubleshooting.md"
TEXT = (ROOT / PAGE).read_text("utf-8")
ENTRIES = dict(re.findall(r"^### `([^`]+)`\n\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL))
MODULES = [path for path in (ROOT / "include").rglob("*.py") if "simulator" not in path.parts]
TREES = {path: ast.parse(path.read_text("utf-8")) for path in MODULES}

# What a code is called where it is passed on. An answer to a webhook calls it the reason.
NAMES = {"code", "error_code", "not_found"}
ANSWERS = {"_Answer": 1}

# In messages the code is what became of the recording.
FURTHER = {"expired_before_archive"}


def constants() -> dict[str, str]:
    """Return the texts that have a name in some module, such as ``PURGED``."""
    return {
        target.id: node.value.value
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


CONSTANTS = constants()


def texts(value: ast.expr) -> Iterator[str]:
    """Yield what an expression for a code may come to, as far as it says so itself."""
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in CONSTANTS:
            yield CONSTANTS[name]
        case ast.IfExp(body=one, orelse=other):
            yield from texts(one)
            yield from texts(other)
        case ast.BoolOp(values=values):
            for one in values:
                yield from texts(one)
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), ast.FormattedValue()]):
            yield f"{text}…"


def positions(tree: ast.Module) -> dict[str, int]:
    """Return the functions of a module that take a code, and as which argument."""
    found = dict(ANSWERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [one.arg for one in node.args.args if one.arg != "self"]
            for name in NAMES & set(arguments):
                found[node.name] = arguments.index(name)
    return found


def stated(path: Path) -> Iterator[str]:
    """Yield the codes that a module states."""
    takers = positions(TREES[path])
    for node in ast.walk(TREES[path]):
        match node:
            case ast.Assign(targets=[ast.Name(id="code")], value=value):
                yield from texts(value)
            case ast.AnnAssign(target=ast.Name(id="code"), value=value) if value is not None:
                yield from texts(value)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "code":
                        yield from texts(value)
            case ast.Call(func=function, args=arguments, keywords=keywords):
                for keyword in keywords:
                    if keyword.arg in NAMES:
                        yield from texts(keyword.value)
                name = getattr(function, "id", getattr(function, "attr", ""))
                if name in takers and len(arguments) > takers[name]:
                    yield from texts(arguments[takers[name]])


def kinds_of_objects() -> set[str]:
    """Return what may be wrong with an object: a part of it is owed as ``object_`` and the kind."""
    source = (ROOT / "include" / "archive" / "manifest.py").read_text("utf-8")
    return set(re.findall(r'return "([a-z_]+)", ', source)) | set(re.findall(r'\("(damaged)", ', source)) | {"extra"}


def codes() -> dict[str, str]:
    """Return every code, with a file that states it."""
    found = {code: str(path.relative_to(ROOT)) for path in MODULES for code in stated(path)}
    for pattern in ("object_…", "media_…"):  # the latter's are codes of classes, too
        found.pop(pattern, None)
    found.update({f"object_{kind}": "include/archive/manifest.py" for kind in kinds_of_objects()})
    found.update(dict.fromkeys(FURTHER, "include/provider/sweep.py"))
    return found


def classes(base: type[CodedError] = CodedError) -> Iterator[type[CodedError]]:
    for path in MODULES:
        if path.name == "errors.py":
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for one in base.__subclasses__():
        yield one
        yield from classes(one)


def test_the_codes_are_found() -> None:
    found = codes()
    ways = {"auth_rejected", "bot_not_found", "no_webhook_secret", "webhook_unsigned", "source_has_more", "too_large"}
    ways |= {"not_archived", "expires_soon", "object_damaged", "object_missing", "purged", "repaired", "not_approved"}
    assert ways <= set(found)
    assert {one.code for one in classes() if one.__module__.startswith("include.")} <= set(found)


def test_every_code_has_its_entry() -> None:
    missing = {code: path for code, path in codes().items() if code not in ENTRIES}
    assert not missing, f"{PAGE} needs an entry, ### `code`, for each of these: {missing}"


def test_no_entry_is_without_a_code() -> None:
    stale = set(ENTRIES) - set(codes())
    assert not stale, f"{PAGE} has entries of codes that are in the code no longer: {sorted(stale)}"


@pytest.mark.parametrize("code", ENTRIES)
def test_an_entry_says_what_to_do(code: str) -> None:
    is_group = TEXT.index(f"### `{code}`") > TEXT.index("## Names of groups")
    assert ("**What to do:** " in ENTRIES[code]) is not is_group


def test_entries_say_what_is_tried_again() -> None:
    for one in classes():
        if one.__module__.startswith("include.") and not one.permanent:
            assert ENTRIES[one.code].startswith("Tried again"), one
    permanent = {one.code for one in classes() if one.permanent} - {one.code for one in classes() if not one.permanent}
    # Codes of a permanent class which some raise as passing.
    exceptions = {"storage_denied", "storage_refused", "unexpected_error"}
    for code in permanent - exceptions:
        assert code not in ENTRIES or not ENTRIES[code].startswith("Tried again"), code
