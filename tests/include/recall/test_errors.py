from __future__ import annotations

import inspect
import pickle
import re

import pytest

from include.errors import CodedError
from include.recall import errors


def classes() -> list[type[errors.RecallError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return [cls for _, cls in members if cls.__module__ == errors.__name__]


def test_the_docstring_shows_the_whole_tree() -> None:
    shown = re.findall(r"^([│├└─ ]*)(Recall\w+)", inspect.cleandoc(errors.__doc__ or ""), re.MULTILINE)
    stack: list[str] = []
    pairs = set()
    for indent, name in shown:
        depth = len(indent) // 4
        stack[depth:] = [name]
        pairs.add((name, stack[depth - 1] if depth else "CodedError"))
    assert pairs == {(cls.__name__, cls.__mro__[1].__name__) for cls in classes()}


def test_codes_are_distinct_and_shown() -> None:
    codes = [cls.code for cls in classes() if cls not in (errors.RecallLifecycleError,)]
    assert len(codes) == len(set(codes))
    assert set(codes) - {"recall_error", "media_error"} <= set(re.findall(r"[a-z]+[a-z_]+", errors.__doc__ or ""))


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_errors_survive_a_pickle_round_trip_with_all_their_fields(cls: type[errors.RecallError]) -> None:
    fields: dict[str, object] = {"retry_after": 7.0}
    if issubclass(cls, errors.RecallApiError):
        fields["status"] = 418
    if issubclass(cls, errors.RecallLifecycleError):
        fields["sub_code"] = "meeting_locked"
    if cls is errors.RecallSchemaError:
        fields["field"] = "results[3].id"
    error = pickle.loads(pickle.dumps(cls("what, which, what to do", code="other_code", **fields)))
    assert type(error) is cls
    assert isinstance(error, CodedError)
    assert (error.code, error.message) == ("other_code", "what, which, what to do")
    assert {name: getattr(error, name) for name in fields} == fields


def test_no_bots_waits_half_a_minute_unless_told() -> None:
    assert errors.RecallNoBotsError("x", status=507).retry_after == 30
    assert errors.RecallNoBotsError("x", status=507, retry_after=4.0).retry_after == 4
