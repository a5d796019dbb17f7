"""The list of saboteurs fits the code as it is; two of them are really let in."""

from __future__ import annotations

import ast
import functools
import re
from typing import TYPE_CHECKING

import pytest

from tests.saboteurs import run

if TYPE_CHECKING:
    from pathlib import Path

SABOTEURS = run.load()
QUICK = ("retry-retries-permanent", "layout-takes-hostile-ids")


@functools.cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((run.ROOT / file).read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_there_are_enough_and_each_has_its_own_id() -> None:
    ids = [one.id for one in SABOTEURS]
    assert len(ids) >= 40
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", one) for one in ids)


@pytest.mark.parametrize("saboteur", SABOTEURS, ids=lambda one: one.id)
def test_a_saboteur_fits(saboteur: run.Saboteur) -> None:
    """Its text is there exactly once, its bug is a program, and its tests exist."""
    changed = saboteur.applied((run.ROOT / saboteur.file).read_text("utf-8"))
    ast.parse(changed)
    assert saboteur.find != saboteur.replace
    assert saboteur.breaks
    assert saboteur.classes
    assert all(re.fullmatch(r"[A-G][0-9]{2}|S[1-7]", one) for one in saboteur.classes)
    assert saboteur.tests
    assert len({test.partition("::")[0] for test in saboteur.tests}) <= 2
    for test in saboteur.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in functions_of(file), test


def test_every_promise_has_a_saboteur() -> None:
    promises = ["archive/copy", "archive/audio", "archive/layout", "archive/manifest"]
    promises += ["archive/stores/local", "archive/stores/s3"]
    promises += [f"recall/{name}" for name in ("client", "retry", "transport", "media", "redaction", "models")]
    promises += [f"recall/{name}" for name in ("budget", "parts", "poll", "readiness", "watch")]
    promises += [f"provider/{name}" for name in ("errors", "operators", "sealing", "sensors", "transfer", "triggers")]
    assert {f"include/{name}.py" for name in promises} <= {one.file for one in SABOTEURS}


def test_two_saboteurs_are_caught(tmp_path: Path) -> None:
    copy = run.copy_project(tmp_path)
    chosen = [one for one in SABOTEURS if one.id in QUICK]
    assert len(chosen) == 2
    for saboteur in chosen:
        before = (copy / saboteur.file).read_bytes()
        assert run.judge(saboteur, copy, timeout=600).word == "caught", saboteur.id
        assert (copy / saboteur.file).read_bytes() == before


@pytest.mark.parametrize(
    ("code", "printed", "word"),
    [
        (0, "3 passed", "survived"),
        (1, "FAILED tests/a.py::test_x[a b] - assert 1 == 2\n1 failed", "caught"),
        (1, "ERROR tests/a.py::test_x - AssertionError: assert ['k'] == []\n1 error", "caught"),
        (1, "FAILED tests/a.py::test_x - NameError: name 'y' is not defined\n1 failed", "broke the program"),
        (1, "", "nothing tested"),
        (2, "ERROR tests/a.py\n1 error", "nothing tested"),
        (4, "ERROR: not found: tests/a.py::test_y", "nothing tested"),
        (5, "no tests ran", "nothing tested"),
        (None, "", "timed out"),
    ],
)
def test_only_a_failing_test_counts(code: int | None, printed: str, word: str) -> None:
    assert run._verdict(code, printed)[0] == word


def test_a_text_that_is_gone_or_there_twice_does_not_fit(tmp_path: Path) -> None:
    for text in ("", "find find"):
        (tmp_path / "a.py").write_text(text)
        saboteur = run.Saboteur("a", "b", ("A01",), "a.py", "find", "replace", ("tests/a.py::test_x",))
        assert run.judge(saboteur, tmp_path).word == "no longer fits"
        assert (tmp_path / "a.py").read_text() == text
