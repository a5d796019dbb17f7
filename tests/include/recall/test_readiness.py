from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from include.recall.errors import RecallBotFailedError, RecallMediaExpiredError, RecallNotRecordedError
from include.recall.models import AudioArtifact, Bot, Recording
from include.recall.readiness import Ended, FailedArtifact, Finished, Ready, Waiting, assess_bot, assess_recording

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)


def recording(status: str | None = "done", *, minute: int = 0, expires: timedelta | None = None) -> dict[str, Any]:
    return {
        "id": f"rec-{minute}",
        "created_at": f"2026-03-04T10:{minute:02}:00Z",
        "expires_at": None if expires is None else (NOW + expires).isoformat(),
        "status": None if status is None else {"code": status, "sub_code": "why" if status == "failed" else None},
    }


def bot(*codes: str | tuple[str, str], recordings: list[dict[str, Any]] | None = None) -> Bot:
    changes = []
    for minute, one in enumerate(codes):
        code, sub_code = one if isinstance(one, tuple) else (one, None)
        changes.append({"code": code, "sub_code": sub_code, "created_at": f"2026-03-04T09:{minute:02}:00Z"})
    changes.reverse()  # the list's order means nothing
    return Bot.parse({"id": "bot-1", "status_changes": changes, "recordings": recordings or []})


def artifact(
    status: str, *, number: int = 1, link: str | None = "https://x/?s=1", sub: str | None = None
) -> AudioArtifact:
    return AudioArtifact.parse(
        {
            "id": f"art-{number}",
            "recording": {"id": "rec-0"},
            "created_at": "2026-03-04T10:00:00Z",
            "status": {"code": status, "sub_code": sub},
            "data": {"download_url": link if status == "done" else None},
        }
    )


@pytest.mark.parametrize(
    ("codes", "stage"),
    [
        ([], "scheduled"),
        (["ready"], "scheduled"),
        (["ready", "joining_call"], "joining_call"),
        (["joining_call", "in_call_recording"], "in_call_recording"),
        (["in_call_recording", "call_ended"], "call_ended"),
        (["in_call_recording", "something_new"], "something_new"),
    ],
)
def test_a_bot_under_way_is_waited_for(codes: list[str], stage: str) -> None:
    waiting = assess_bot(bot(*codes, recordings=[recording("processing")]))
    assert isinstance(waiting, Waiting)
    assert waiting.stage == stage


@pytest.mark.parametrize("sub_code", ["meeting_locked", "zoom_account_blocked", "never_seen_before"])
def test_a_bot_that_failed_before_recording(sub_code: str) -> None:
    with pytest.raises(RecallBotFailedError) as caught:
        assess_bot(bot("joining_call", ("fatal", sub_code)))
    assert caught.value.code == "bot_fatal"
    assert caught.value.sub_code == sub_code
    assert sub_code in caught.value.message


@pytest.mark.parametrize("reason", ["timeout_exceeded_waiting_room", "bot_kicked_from_waiting_room", "invented"])
def test_a_bot_that_was_never_let_in(reason: str) -> None:
    with pytest.raises(RecallNotRecordedError) as caught:
        assess_bot(bot("in_waiting_room", ("call_ended", reason), "done"))
    assert (caught.value.code, caught.value.sub_code) == ("not_recorded", reason)


def test_a_bot_without_any_reason() -> None:
    with pytest.raises(RecallNotRecordedError, match="no reason given"):
        assess_bot(bot("done"))


def test_a_bot_whose_media_is_gone() -> None:
    with pytest.raises(RecallMediaExpiredError):
        assess_bot(bot("in_call_recording", "done", "media_expired"))


def test_a_failed_bot_may_have_recorded_before() -> None:
    finished = assess_bot(bot("in_call_recording", ("fatal", "bot_errored"), recordings=[recording()]))
    assert isinstance(finished, Finished)
    assert [one.id for one in finished.recordings] == ["rec-0"]


def test_all_recordings_are_handed_on_in_order() -> None:
    finished = assess_bot(bot("done", recordings=[recording(minute=9), recording("failed", minute=3)]))
    assert isinstance(finished, Finished)
    assert [one.id for one in finished.recordings] == ["rec-3", "rec-9"]


@pytest.mark.parametrize("status", ["processing", "paused", "brand_new", None])
def test_unsettled_recordings_are_waited_for(status: str | None) -> None:
    finished = bot("done", recordings=[recording(), recording(status, minute=3)])
    waiting = assess_bot(finished)
    assert isinstance(waiting, Waiting)
    assert waiting.stage == "recording processing"
    assert (status or "unknown") in waiting.detail
    alone = assess_recording(finished.recordings[1], [artifact("done")], asked_for=True, server_time=NOW)
    assert isinstance(alone, Waiting)


def assess(
    artifacts: list[AudioArtifact], *, asked_for: bool | None = True, server_time: datetime | None = NOW, **kwargs: Any
) -> object:
    return assess_recording(
        Recording.parse(recording(**kwargs)), artifacts, asked_for=asked_for, server_time=server_time
    )


@pytest.mark.parametrize(
    "artifacts",
    [
        [artifact("processing")],
        [artifact("done", link=None)],
        [artifact("brand_new")],
        [artifact("done"), artifact("processing", number=2)],
        [artifact("failed"), artifact("processing", number=2)],
    ],
)
def test_audio_under_way(artifacts: list[AudioArtifact]) -> None:
    assert assess(artifacts) == Waiting("audio processing")


def test_audio_that_is_ready() -> None:
    assert assess([artifact("done")]) == Ready(("art-1",))
    assert assess([artifact("done"), artifact("done", number=2)]) == Ready(("art-1", "art-2"))
    gaps = [artifact("failed", number=2, sub="codec"), artifact("deleted", number=3)]
    assert assess([artifact("done"), *gaps]) == Ready(
        ("art-1",), (FailedArtifact("art-2", "media_failed", "codec"), FailedArtifact("art-3", "media_deleted", None))
    )
    # What can still be had is had, whatever the recording says of itself.
    assert assess([artifact("done")], status="failed") == Ready(("art-1",))
    assert assess([artifact("done")], expires=timedelta(hours=-1)) == Ready(("art-1",))


@pytest.mark.parametrize(
    ("artifacts", "kwargs", "code"),
    [
        ([artifact("failed", sub="codec")], {}, "media_failed"),
        ([artifact("failed"), artifact("deleted", number=2)], {}, "media_failed"),
        ([], {"status": "failed"}, "media_failed"),
        ([artifact("deleted")], {}, "media_deleted"),
        ([artifact("deleted")], {"expires": timedelta(seconds=-1)}, "media_expired"),
        ([artifact("deleted")], {"expires": timedelta(seconds=1)}, "media_deleted"),
        ([], {"status": "deleted"}, "media_deleted"),
        ([], {"status": "deleted", "expires": timedelta(hours=-1)}, "media_expired"),
        ([], {"expires": timedelta(hours=-1)}, "media_expired"),
        ([artifact("done", link=None)], {"expires": timedelta(hours=-1)}, "media_expired"),
        ([], {"asked_for": False}, "not_configured"),
        ([], {"asked_for": False, "expires": timedelta(hours=-1)}, "not_configured"),
    ],
)
def test_audio_that_will_never_be(artifacts: list[AudioArtifact], kwargs: dict[str, Any], code: str) -> None:
    ended = assess(artifacts, **kwargs)
    assert isinstance(ended, Ended)
    assert ended.code == code
    assert "rec-0" in ended.message


def test_the_reason_of_a_failure_is_kept() -> None:
    ended = assess([artifact("failed", sub="codec_on_fire")])
    assert isinstance(ended, Ended)
    assert "codec_on_fire" in ended.message


def test_how_to_ask_for_audio_is_told() -> None:
    ended = assess([], asked_for=False)
    assert isinstance(ended, Ended)
    assert "audio_separate_raw" in ended.message


@pytest.mark.parametrize("asked_for", [True, None])
def test_audio_not_listed_yet(asked_for: bool | None) -> None:
    assert assess([], asked_for=asked_for) == Waiting("audio not listed yet")


def test_only_the_servers_clock_tells_what_has_expired() -> None:
    long_ago = timedelta(days=-36500)
    assert assess([], expires=long_ago, server_time=None) == Waiting("audio not listed yet")
