from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from include.archive import errors

if TYPE_CHECKING:
    from include.errors import CodedError

KINDS = sorted(
    (each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ArchiveError)),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_coded_and_survive_pickling(kind: type[CodedError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what failed", retry_after=3)))
    assert type(error) is kind
    assert (error.message, error.code, error.permanent, error.retry_after) == (
        "what failed",
        kind.code,
        kind.permanent,
        3,
    )


def test_codes_are_unique_and_in_the_tree() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    tree = errors.__doc__ or ""
    assert all(kind.__name__ in tree for kind in KINDS)
    assert all(f" {kind.code}" in tree for kind in KINDS if kind not in (errors.ArchiveError, errors.ManifestError))


def test_tree_states_which_are_retried() -> None:
    for line in (errors.__doc__ or "").splitlines():
        for kind in KINDS:
            if line.split() and kind.__name__ in line.split():
                assert line.rstrip().endswith("retried") is not kind.permanent
