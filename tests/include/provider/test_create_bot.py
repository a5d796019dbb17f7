from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include.errors import CodedError
from include.provider import operators
from include.provider.operators import RecallCreateBotOperator
from include.recall.errors import RecallRequestError
from tests.include.provider.conftest import Context, StateStore

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator

ZOOM = "https://example.zoom.us/j/123456789"


def send(context: Context, meeting_url: str = ZOOM, **arguments: Any) -> str:
    operator = RecallCreateBotOperator(task_id="send_bot", meeting_url=meeting_url, **arguments)
    return operator.execute(context)  # type: ignore[arg-type]


def bots(simulator: RunningSimulator) -> int:
    return len(simulator.control("GET", "/state")["bots"])


def creates(simulator: RunningSimulator) -> list[dict[str, Any]]:
    return [one for one in simulator.journal("api") if one["method"] == "POST"]


def test_no_meeting_is_skipped(simulator: RunningSimulator) -> None:
    with pytest.raises(AirflowSkipException):
        send(Context(), "")
    assert simulator.journal() == []


def test_retry_finds_the_bot_that_was_sent(simulator: RunningSimulator) -> None:
    state = StateStore()
    first = send(Context(state))
    assert send(Context(state, 2)) == first
    assert bots(simulator) == 1
    assert len(creates(simulator)) == 1


@pytest.mark.parametrize("dies_before", ["bot_id", "idempotency_key"])
def test_killed_between_any_two_steps(simulator: RunningSimulator, dies_before: str) -> None:
    """The worker dies just before it could save something; the next try has only what was saved."""

    class Dying(StateStore):
        def set(self, key: str, value: Any, *, retention: Any = None) -> None:
            if key == dies_before:
                raise KeyboardInterrupt
            super().set(key, value)

    dying = Dying()
    with pytest.raises(KeyboardInterrupt):
        send(Context(dying))
    left = StateStore()
    left.values = dying.values
    bot_id = send(Context(left, 2))
    assert bots(simulator) == 1
    assert send(Context(left, 3)) == bot_id


def test_lost_answer_and_forgotten_key(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is lost and by the next try Recall has forgotten the key: the bot is found by its metadata."""
    simulator.add_faults({"origin": "api", "method": "POST", "times": None, "action": {"drop": "after"}})
    monkeypatch.setattr("include.recall.retry.RetryPolicy.run", lambda self, attempt: attempt(self.clock() + 10))
    state = StateStore()
    with pytest.raises(RecallRequestError):
        send(Context(state))
    simulator.control("DELETE", "/faults")
    simulator.advance(2 * 3600)
    send(Context(state, 2))
    assert bots(simulator) == 1
    assert len(creates(simulator)) == 1


@pytest.mark.parametrize("remembered", [True, False])
def test_a_new_bot_may_be_unknown_for_a_moment(
    simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch, remembered: bool
) -> None:
    monkeypatch.setattr(operators.time, "sleep", lambda seconds: None)
    state = StateStore()
    sent = send(Context(state)) if remembered else None
    simulator.add_faults({"origin": "api", "path": "^/api/v1/bot/[^?]", "times": 3, "action": {"status": 404}})
    assert send(Context(state, 2)) == (sent or state.get("bot_id"))
    assert bots(simulator) == 1


def test_a_bot_that_stays_unknown_is_an_error(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "REPLICATION_SECONDS", 0.0)
    monkeypatch.setattr(operators.time, "sleep", lambda seconds: None)
    simulator.add_faults({"origin": "api", "path": "^/api/v1/bot/[^?]", "times": None, "action": {"status": 404}})
    with pytest.raises(CodedError) as caught:
        send(Context())
    assert caught.value.code == "bot_not_found"


def test_two_runs_for_one_meeting_share_its_bot(simulator: RunningSimulator) -> None:
    assert send(Context()) == send(Context())
    assert bots(simulator) == 1


def test_two_runs_at_one_moment_share_a_bot(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither run finds the other's bot, because it is not there yet when they look."""
    monkeypatch.setattr("include.recall.client.RecallClient.find_bots", lambda self, metadata: [])
    assert send(Context()) == send(Context())
    assert bots(simulator) == 1


def test_next_meeting_at_the_same_address_gets_its_own_bot(simulator: RunningSimulator) -> None:
    first = send(Context())
    simulator.advance(600)
    second = send(Context())
    assert second != first
    assert send(Context()) == second
    assert bots(simulator) == 2


def test_no_bots_to_spare_is_asked_again_with_a_new_key(
    simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert len(pauses) < 9, "it asks for ever"

    monkeypatch.setattr(operators.time, "sleep", pause)
    refusal = {"status": 507, "headers": {"Retry-After": "20"}, "body": {"detail": "none"}}
    simulator.add_faults({"origin": "api", "method": "POST", "times": 2, "action": refusal})
    send(Context())
    assert pauses == [20, 20]
    keys = [one["idempotency_key"] for one in creates(simulator)]
    assert len(set(keys)) == len(keys) == 3
    assert bots(simulator) == 1


def test_no_bots_to_spare_for_too_long(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators.time, "sleep", lambda seconds: None)
    simulator.add_faults({"origin": "api", "method": "POST", "times": None, "action": {"status": 507}})
    context = Context()
    with pytest.raises(CodedError) as caught:
        send(context, no_bots_timeout=1.0)
    assert (caught.value.code, caught.value.permanent, caught.value.retry_after) == ("no_bots_available", False, 30.0)
    assert context.error is not None
    assert bots(simulator) == 0


@pytest.mark.parametrize("url", ["https://example.webex.com/meet/x", "https://app.slack.com/huddle/T1/C1"])
def test_hopeless_platforms_are_refused_without_asking(simulator: RunningSimulator, url: str) -> None:
    context = Context()
    with pytest.raises(CodedError) as caught:
        send(context, url)
    assert caught.value.code == "platform_unsupported"
    assert context.error is not None
    assert context.error["code"] == "platform_unsupported"
    assert simulator.journal() == []


@pytest.mark.parametrize("formats", [(), ("flac",)])
def test_a_bot_that_would_record_nothing_is_refused(simulator: RunningSimulator, formats: tuple[str, ...]) -> None:
    with pytest.raises(CodedError) as caught:
        send(Context(), audio_formats=formats)
    assert caught.value.code == "not_configured"
    assert simulator.journal() == []


def test_uncertain_platforms_get_their_bot(simulator: RunningSimulator) -> None:
    send(Context(), "https://meet.google.com/abc-defg-hij")
    assert bots(simulator) == 1


@pytest.mark.parametrize(("status", "code"), [(401, "auth_rejected"), (402, "payment_required")])
def test_refusals_are_final(simulator: RunningSimulator, status: int, code: str) -> None:
    simulator.add_faults({"origin": "api", "times": None, "action": {"status": status, "body": {"detail": "no"}}})
    context = Context()
    with pytest.raises(CodedError) as caught:
        send(context)
    assert (caught.value.code, caught.value.permanent) == (code, True)
    assert len(simulator.journal()) == 1
    assert bots(simulator) == 0
