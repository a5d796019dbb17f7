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

# A query, or fragment, within a JSON string, where slashes, and whatever else, may be escaped.
_QUERY_IN_JSON = re.compile(rb'([?#])((?:[^\s"\\?#]|\\/|\\u[0-9a-fA-F]{4})+)')
_SIGNED = re.compile(
    rb"(?i)(?:^|[&;]|\\u0026)(?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|signature|sig|token)(?:=|\\u003d|%3d)"
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


def hide_signed_links(data: bytes) -> bytes:
    """Return JSON in which the queries of links that carry a signature or a token are hidden, all else as it was.

    :param data: the text of a JSON document, in UTF-8.
    """

    def hidden(match: re.Match[bytes]) -> bytes:
        return match[1] + HIDDEN.encode() if _SIGNED.search(match[2]) else match[0]

    return _QUERY_IN_JSON.sub(hidden, data)


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
