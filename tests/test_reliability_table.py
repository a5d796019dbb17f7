"""The table of faults in the documentation says what is so."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos import airflow_faults, schedule

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "reliability.md"

# Every id of the catalogue.
CATALOGUE = re.findall(
    r"\w+",
    """
A01 A02 A03 A04 A05 A06 A07 A08 A10 A11 A12 A14 A15 A17 A19 A20 A21 A23 A24
B01 B02 B04 B05 B06 B07 B08 B09 B10 B11 B12 B13 B14 B16 B17 B18 B19 B21
C01 C02 C03 C04 C05 C10 C11 C14 C15 C16 C17 C19 C20 C21 C22 C23 C25 C26 C27
D01 D02 D03 D04 D07 D08 D09 D11 D12 D13 D14 D16 D17 D18 D19 D20 D21 D23
E01 E02 E03 E04 E05 E06 E07 E08 E09 E10 E11 E12 E13 E14 E15 E17 E18 E19 E20 E21 E22 E24
F01 F02 F04 F05 F06 F07 F08 F09 F10 F11 F12 F14 F15 F16 F17 F18
G01 G02 G03 G04 G05 G06 G08 G10 G12 G13 G14 G15
""",
)


def rows() -> dict[str, list[str]]:
    """Return the cells of each row by its id."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.read_text().splitlines() if "|" in line]
    return {row[0]: row for row in cells if re.fullmatch(r"[A-Z]\d\d", row[0])}


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_every_class_is_in_the_table() -> None:
    assert list(rows()) == CATALOGUE


@pytest.mark.parametrize("identity", CATALOGUE)
def test_a_row_is_true(identity: str) -> None:
    _, _, outcome, chaos, tests, gap = rows()[identity]
    assert outcome
    played = Counter(kind.id for kind in schedule.KINDS)[identity]
    expected = [str(played)] if played else []
    expected += ["Airflow"] if identity in airflow_faults.KINDS else []
    assert chaos == (", ".join(expected) or "–")
    named = re.findall(r"`([^`]+)`", tests)
    assert named or gap, "a class without a test says so"
    for name in named:
        file, _, test = name.partition("::")
        assert test in functions_of(TESTS / file), name


def test_what_is_played_beyond_the_catalogue_is_named() -> None:
    beyond = TABLE.read_text().partition("## Beyond the catalogue")[2]
    assert set(re.findall(r"`([A-Z]\d\d)`", beyond)) == {kind.id for kind in schedule.KINDS} - set(CATALOGUE)
