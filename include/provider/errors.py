"""Errors of the Airflow glue, and how any error of ours reaches Airflow.

CodedError                     include.errors, common to all wings
├── RecallError …              the source's tree, include.recall.errors
├── ArchiveError …             the destination's tree, include.archive.errors
├── BadSettingError            bad_setting: an Airflow Variable can't mean what it says
├── BadParamsError             bad_params: the run's params don't fit together
├── UnsupportedPlatformError   platform_unsupported: no separate audio there, so no bot is sent
├── PartsOwedError             parts_owed: the recording is not settled, some parts are still to be had
├── NotProvenError             copy_not_proven, or what exactly: nothing is deleted at the source without a proven copy
├── ArchiveDamagedError        archive_damaged: a verification found what it could not repair
└── VerificationIncompleteError verification_incomplete: some of the archive was not looked at
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryPolicy
from airflow.sdk.definitions.retry_policy import RetryDecision

from include.errors import CodedError
from include.provider.metrics import ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow.sdk import Context

ERROR_KEY = "error"
"""XCom key under which a task that gives up says why: ``{"code": …, "message": …}``."""


class BadSettingError(CodedError, ValueError):
    """An Airflow Variable has a value that it can't have."""

    code = "bad_setting"


class BadParamsError(CodedError, ValueError):
    """The run's params contradict each other."""

    code = "bad_params"


class UnsupportedPlatformError(CodedError):
    """Recall records no separate audio on this platform."""

    code = "platform_unsupported"


class PartsOwedError(CodedError):
    """A recording is not settled: some of its parts are not stored yet and may still be had."""

    code = "parts_owed"
    owed: Sequence[Mapping[str, str]] = ()
    expires_at: str | None = None


class NotProvenError(CodedError):
    """Something at the source stays, since it is not proven that the archive holds all of it."""

    code = "copy_not_proven"


class ArchiveDamagedError(CodedError):
    """A verification found damage that it could not repair."""

    code = "archive_damaged"


class VerificationIncompleteError(CodedError):
    """A verification could not look at all that it was to look at."""

    code = "verification_incomplete"


class RecallRetryPolicy(RetryPolicy):
    """Let the error decide: a permanent one is never retried, a rate limit is retried when it said."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Turn an error of ours into Airflow's decision; leave all others to the task's own settings."""
        if not isinstance(exception, CodedError):
            return RetryDecision.default()
        if exception.permanent:
            return RetryDecision.fail(reason=exception.code)
        delay = None if exception.retry_after is None else timedelta(seconds=exception.retry_after)
        return RetryDecision.retry(delay=delay, reason=exception.code)


@contextmanager
def error_reported(context: Context) -> Iterator[None]:
    """Push the code and message of an error of ours to XCom before it leaves the task.

    A retry that follows clears the entry, so what stands there is why the task gave up.
    """
    try:
        yield
    except CodedError as error:
        ERRORS.add(code=error.code)
        report: dict[str, Any] = {"code": error.code, "message": error.message}
        if owed := getattr(error, "owed", None):
            report["owed"] = owed
        context["ti"].xcom_push(key=ERROR_KEY, value=report)
        raise
