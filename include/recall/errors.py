"""Everything that can go wrong at the source.

RecallError                                  base of all below
├── RecallConfigError (also ValueError)      bad_config: what we were given can't be used
├── RecallRequestError                       request_failed: no whole reply came (retryable, but not a bad certificate)
├── RecallResponseError                      bad_response: the reply is not what the API speaks
├── RecallSchemaError                        schema_changed: the reply is JSON, but a field is not as documented
├── RecallPaginationError                    unsafe_pagination_url: a page's link can't be followed
├── RecallUnsafeRedirectError                unsafe_redirect: sent on to where we don't go
├── RecallApiError                           bad_request: the API refused (``status``)
│   ├── RecallAuthError                      auth_rejected: 401
│   ├── RecallPaymentError                   payment_required: 402
│   ├── RecallBlockedError                   request_blocked: 403
│   ├── RecallNotFoundError                  bot_not_found, recording_not_found, artifact_not_found: 404
│   ├── RecallConflictError                  conflict: 409 (retryable)
│   ├── RecallRateLimitError                 rate_limited: 429 (retryable)
│   ├── RecallServerError                    server_error: 500, 502, 503, 504 (retryable)
│   └── RecallNoBotsError                    no_bots_available: 507 (retryable, with a new idempotency key)
├── RecallLifecycleError                     a meeting that ended without audio to fetch (``sub_code``)
│   ├── RecallBotFailedError                 bot_fatal
│   ├── RecallNotRecordedError               not_recorded
│   ├── RecallNotConfiguredError             not_configured
│   ├── RecallMediaFailedError               media_failed
│   ├── RecallMediaDeletedError              media_deleted
│   ├── RecallMediaExpiredError              media_expired
│   ├── RecallMediaMissingError              media_missing
│   ├── RecallMediaTimeoutError              media_timeout
│   └── RecallWaitTimeoutError               wait_timeout
├── RecallSignatureError                     webhook_refused: not proven to be from Recall
├── RecallEventError                         webhook_unreadable: proven, but no event
└── RecallMediaError                         fetching from a signed link
    ├── RecallMediaForbiddenError            media_forbidden: refused, fresh links too
    ├── RecallLinkExpiredError               link_expired: refused, a fresh link may help (retryable)
    ├── RecallHostNotAllowedError            host_not_allowed
    ├── RecallMediaCutError                  media_cut: fewer bytes than declared (retryable)
    ├── RecallMediaSlowError                 media_slow: below the minimum rate (retryable)
    ├── RecallUnexpectedContentError         unexpected_content (retryable)
    └── RecallTooLargeError                  parts_too_large
"""

from __future__ import annotations

from typing import Any, ClassVar

from include.errors import CodedError


class RecallError(CodedError):
    """Base of every error of the source."""

    code = "recall_error"


class RecallConfigError(RecallError, ValueError):
    """A key, region, address or id that can't be used; nothing was asked of the API."""

    code = "bad_config"


class RecallRequestError(RecallError):
    """No whole reply came: refused, not resolved, timed out, cut. A certificate that can't be trusted is permanent."""

    code = "request_failed"
    permanent = False


class RecallResponseError(RecallError):
    """A reply that is not JSON, is empty, too large, or of the wrong top-level type."""

    code = "bad_response"


class RecallSchemaError(RecallError):
    """A field that the pipeline can't do without is missing or has another type.

    :param field: the field's path, like ``results[3].id``.
    """

    code = "schema_changed"

    def __init__(self, message: str, *, field: str, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.field = field


class RecallPaginationError(RecallError):
    """A ``next`` link that leaves the API's own address, repeats, or never ends."""

    code = "unsafe_pagination_url"


class RecallUnsafeRedirectError(RecallError):
    """A redirect to a place that we don't go to, or one too many."""

    code = "unsafe_redirect"


class RecallApiError(RecallError):
    """The API answered with an error status.

    :param status: the HTTP status.
    """

    code = "bad_request"

    def __init__(self, message: str, *, status: int, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.status = status


class RecallAuthError(RecallApiError):
    """The key is wrong, or belongs to another region."""

    code = "auth_rejected"


class RecallPaymentError(RecallApiError):
    """The account's balance is too low."""

    code = "payment_required"


class RecallBlockedError(RecallApiError):
    """Recall's web firewall refused the request."""

    code = "request_blocked"


class RecallNotFoundError(RecallApiError):
    """The region doesn't know this id. Each endpoint sets its own code."""

    code = "artifact_not_found"


class RecallConflictError(RecallApiError):
    """A request with the same idempotency key is still under way, or what is to be deleted is still being made."""

    code = "conflict"
    permanent = False


class RecallRateLimitError(RecallApiError):
    """The workspace's request budget is used up."""

    code = "rate_limited"
    permanent = False


class RecallServerError(RecallApiError):
    """The server, or something in front of it, failed."""

    code = "server_error"
    permanent = False


class RecallNoBotsError(RecallApiError):
    """No ad-hoc bot is free. The reply is remembered for its idempotency key, so a further try needs a new one."""

    code = "no_bots_available"
    permanent = False
    default_retry_after: ClassVar[float | None] = 30.0


class RecallLifecycleError(RecallError):
    """A bot, recording or artifact came to an end that leaves nothing to fetch.

    :param sub_code: Recall's own reason, an open set; ``None`` where it gave none.
    """

    code = "not_recorded"

    def __init__(self, message: str, *, sub_code: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.sub_code = sub_code


class RecallBotFailedError(RecallLifecycleError):
    """The bot failed before it recorded anything."""

    code = "bot_fatal"


class RecallNotRecordedError(RecallLifecycleError):
    """The bot finished without recording, for example because nobody let it in."""

    code = "not_recorded"


class RecallNotConfiguredError(RecallLifecycleError):
    """The bot was never asked for separate audio."""

    code = "not_configured"


class RecallMediaFailedError(RecallLifecycleError):
    """Recall could not produce the audio."""

    code = "media_failed"


class RecallMediaDeletedError(RecallLifecycleError):
    """The audio was deleted at Recall."""

    code = "media_deleted"


class RecallMediaExpiredError(RecallLifecycleError):
    """The audio's retention at Recall is over."""

    code = "media_expired"


class RecallMediaMissingError(RecallLifecycleError):
    """Separate audio was asked for and never listed."""

    code = "media_missing"


class RecallMediaTimeoutError(RecallLifecycleError):
    """Separate audio was still being produced at the deadline."""

    code = "media_timeout"


class RecallWaitTimeoutError(RecallLifecycleError):
    """The meeting was not over at the deadline."""

    code = "wait_timeout"


class RecallSignatureError(RecallError):
    """A webhook that is not proven to be from Recall.

    Its codes: ``webhook_unsigned``, ``webhook_malformed``, ``webhook_stale``, ``webhook_forged``,
    ``no_webhook_secret``.
    """

    code = "webhook_refused"


class RecallEventError(RecallError):
    """A webhook that is from Recall, and not the event that it should be."""

    code = "webhook_unreadable"


class RecallMediaError(RecallError):
    """Base of what goes wrong with a signed link."""

    code = "media_error"


class RecallMediaForbiddenError(RecallMediaError):
    """The media host refuses, although the links were fresh."""

    code = "media_forbidden"


class RecallLinkExpiredError(RecallMediaError):
    """A signed link was refused; a fresh one may help."""

    code = "link_expired"
    permanent = False


class RecallHostNotAllowedError(RecallMediaError):
    """A link to a host or address that audio is not fetched from."""

    code = "host_not_allowed"


class RecallMediaCutError(RecallMediaError):
    """The connection ended before the body did."""

    code = "media_cut"
    permanent = False


class RecallMediaSlowError(RecallMediaError):
    """The body comes too slowly, or not at all."""

    code = "media_slow"
    permanent = False


class RecallUnexpectedContentError(RecallMediaError):
    """The reply can't be the body that was asked for."""

    code = "unexpected_content"
    permanent = False


class RecallTooLargeError(RecallMediaError):
    """A list beyond every plausible size."""

    code = "parts_too_large"
