from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from include.errors import CodedError
from include.provider.errors import PartsOwedError, RecallRetryPolicy


def decide(error: BaseException) -> tuple[RetryAction, timedelta | None]:
    decision = RecallRetryPolicy().evaluate(error, 1, 3)
    return decision.action, decision.retry_delay


def test_permanent_errors_are_never_retried() -> None:
    assert decide(CodedError("m", code="auth_rejected")) == (RetryAction.FAIL, None)


def test_passing_errors_are_retried_when_they_said() -> None:
    assert decide(CodedError("m", permanent=False)) == (RetryAction.RETRY, None)
    assert decide(CodedError("m", permanent=False, retry_after=7.5)) == (RetryAction.RETRY, timedelta(seconds=7.5))


def test_other_errors_are_left_to_the_task() -> None:
    assert decide(RuntimeError("m")) == (RetryAction.DEFAULT, None)


@pytest.mark.parametrize("kind", [CodedError, PartsOwedError])
def test_errors_survive_pickling(kind: type[CodedError]) -> None:
    error = kind("what failed", permanent=False, retry_after=3.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code, copy.message, copy.permanent, copy.retry_after) == (
        kind,
        error.code,
        "what failed",
        False,
        3.0,
    )
    assert str(copy) == f"[{error.code}] what failed"
