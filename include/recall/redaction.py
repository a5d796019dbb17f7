"""Strip what must not be seen out of text: queries of URLs, credentials, tokens."""

from __future__ import annotations

import logging
import re

HIDDEN = "[hidden]"

LONGEST_MESSAGE = 20_000
"""Characters of a log message that are kept: at level DEBUG botocore shows whole bodies of many MiB."""

_RULES = (
    # user:password@ in a URL
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@\"'<>]+@"), rf"\1{HIDDEN}@"),
    # a query or fragment that carries anything; signed links carry their secret there
    (re.compile(r"([?#])[^\s\"'<>?#]*(?:=|%3[Dd])[^\s\"'<>]*"), rf"\1{HIDDEN}"),
    (
        re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:token|bearer|basic)\s+)?[^\s\"',]+"),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)\b((?:token|bearer|basic)\s+)[a-z0-9._~+/-]{16,}=*"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(?i)\b((?:[a-z-]*(?:token|secret|signature|credential|password|api[_-]?key|accesskeyid))=)[^\s&\"'<>]+"
        ),
        rf"\1{HIDDEN}",
    ),
    # botocore shows the headers that it signs
    (re.compile(r"(?i)\b(x-amz-(?:security|s3session)-token[\"']?\s*:\s*(?:b?[\"'])?)[^\s\"',]+"), rf"\1{HIDDEN}"),
    # botocore shows a signature on a line of its own
    (re.compile(r"(?i)\b(signature:\s*)[0-9a-f]{64}\b"), rf"\1{HIDDEN}"),
)

_HTTP_LOGGERS = tuple(
    f"urllib3.{name}" for name in ("connectionpool", "connection", "poolmanager", "response", "util.retry")
)


def redact(text: str) -> str:
    """Return the text without queries of URLs, credentials and tokens.

    :param text: anything that is about to be shown or logged.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class RedactingFilter(logging.Filter):
    """Redact whole log messages; lets every record through."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the record's message by its redacted form."""
        message = record.getMessage()
        # Some is redacted beyond what is kept, so that no secret is cut into a piece that no rule knows.
        record.msg = redact(message[: 2 * LONGEST_MESSAGE])[:LONGEST_MESSAGE]
        if len(message) > LONGEST_MESSAGE:
            record.msg += f"… ({len(message)} characters)"
        record.args = None
        record.exc_info = None  # its text repeats what the message said, unredacted
        return True


_FILTER = RedactingFilter()


def redact_logs(*names: str) -> None:
    """Keep loggers from showing secrets, at whatever level they are told to log. Calling it again changes nothing.

    :param names: the loggers, each by its own name, since a filter doesn't reach the loggers below.
    """
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)


def redact_http_logs() -> None:
    """Keep urllib3 from logging queries."""
    redact_logs(*_HTTP_LOGGERS)
