from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.recall import redaction
from include.recall.redaction import LONGEST_MESSAGE, redact, redact_http_logs, redact_logs


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("GET https://h.example/a/b?Signature=CANARY&Expires=1 failed", "https://h.example/a/b"),
        ("https://h.example/a#token=CANARY", "https://h.example/a"),
        ('"GET /part-1?AWSAccessKeyId=CANARY&Signature=CANARY HTTP/1.1" 200', '"GET /part-1'),
        ("/next?url=https%3A%2F%2Fh%2F%3Ftoken%3DCANARY", "/next"),
        ("/x?y%3DCANARY", "/x"),
        ("https://user:CANARY@h.example/", "h.example"),
        ("{'Authorization': 'CANARY', 'Accept': '*/*'}", "Accept"),
        ("Authorization: Token CANARY", "Authorization"),
        ("sent Bearer CANARYCANARYCANARY==", "sent"),
        ("x-amz-security-token=CANARY&x=1", "x=1"),
        ("host:h\nx-amz-security-token:CANARY\nx-amz-date:1", "x-amz-date:1"),
        ("{'X-Amz-Security-Token': b'CANARY', 'Accept': b'*/*'}", "Accept"),
        ("Signature=CANARY", "Signature"),
        ("api_key=CANARY", "api_key"),
    ],
)
def test_secrets_are_hidden_and_the_rest_is_kept(text: str, kept: str) -> None:
    shown = redact(text)
    assert "CANARY" not in shown
    assert kept in shown


@pytest.mark.parametrize("text", ["", "bot b0b3 not found", "why? because", "https://h.example/a/b", "5 > 3 = true"])
def test_plain_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@given(
    st.from_regex(r"https://[a-z]{1,8}\.example/[a-z/]{0,9}", fullmatch=True),
    st.dictionaries(st.from_regex(r"[A-Za-z-]{1,9}", fullmatch=True), st.just("CANARY"), min_size=1, max_size=3),
    st.text(st.characters(codec="ascii"), max_size=9),
)
@settings(max_examples=60)
def test_no_query_survives(url: str, query: dict[str, str], around: str) -> None:
    link = url + "?" + "&".join(f"{name}={value}" for name, value in query.items())
    assert "CANARY" not in redact(f"{around} {link} {around}")


def test_http_logs_are_redacted_once_however_often_asked(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("urllib3.connectionpool")
    before = len(logger.filters)
    redact_http_logs()
    redact_http_logs()
    assert len(logger.filters) <= before + 1
    with caplog.at_level(logging.DEBUG, "urllib3"):
        logger.debug('%s://%s:%s "%s %s" %s', "https", "h", 443, "GET", "/p?Signature=CANARY", 200)
    assert "CANARY" not in caplog.text
    assert '"GET /p?[hidden]" 200' in caplog.text


def test_bodies_in_logs_are_cut_short_before_they_are_searched(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    monkeypatch.setattr(redaction, "redact", lambda text: (searched.append(len(text)), redact(text))[1])
    redact_logs("somebody.elses")
    with caplog.at_level(logging.DEBUG, "somebody.elses"):
        logging.getLogger("somebody.elses").debug(
            "%s?Signature=CANARY&x=%s", "x" * (LONGEST_MESSAGE - 30), "y" * 20_000_000
        )
    assert searched == [2 * LONGEST_MESSAGE]
    assert "CANARY" not in caplog.text
    assert len(caplog.text) < 2 * LONGEST_MESSAGE
