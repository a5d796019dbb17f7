"""The archive as a task opens it."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING

import pytest
from airflow.providers.amazon.aws.hooks.base_aws import BaseSessionFactory
from botocore.session import Session

from include.archive.stores.s3 import PART_BYTES
from include.provider.hook import get_store
from tests.strict_s3.process import Process as StrictS3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from include.archive.stores import Store

AUDIO = b"these are samples"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictS3]:
    with StrictS3() as server:
        aws = {
            "conn_type": "aws",
            "login": server.access_key,
            "password": server.secret_key,
            "extra": {"endpoint_url": server.endpoint, "region_name": server.region},
        }
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(aws))
        monkeypatch.setenv("AIRFLOW_VAR_RECALL_ARCHIVE_URI", f"s3://{server.bucket}/audio")
        yield server


def through_boto3(s3: StrictS3) -> Store:
    """Return the archive after its bucket turned out to be beyond what goes without boto3."""
    s3.faults({"operation": "HeadObject", "action": "error", "status": 400})
    store = get_store()
    assert store.stat("some/key") is None
    return store


def test_an_ordinary_bucket_takes_no_client(s3: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.session.Session.create_client", lambda *_, **__: pytest.fail("a client is made"))
    store = get_store()
    store.preflight("some")
    with store.write("some/key", media_type="audio/wav") as writer:
        writer.write(memoryview(AUDIO * (PART_BYTES // len(AUDIO) + 1)))
        info = writer.commit({})
    assert [one.key for one in store.list()] == ["some/key"]
    assert list(store.read("some/key", 10))
    store.delete(info)
    assert store.abort_stale_below(["some"]) == 0


def test_a_session_of_the_deployments_own_makes_a_client(s3: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be one whose clients send other requests."""
    made = []
    monkeypatch.setattr(
        "airflow.providers.amazon.aws.hooks.base_aws.SessionFactory", type("Own", (BaseSessionFactory,), {})
    )
    create = Session.create_client
    monkeypatch.setattr(Session, "create_client", lambda *args, **options: made.append(1) or create(*args, **options))
    assert get_store().put_if_absent("some/key", AUDIO, "audio/wav")
    assert made


def test_signatures_are_not_logged_at_any_level(s3: StrictS3, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = through_boto3(s3)
    assert store.put_if_absent("some/key", AUDIO, "audio/wav")
    assert b"".join(store.read("some/key")) == AUDIO
    assert "/audio/some/key" in caplog.text, "botocore did log"
    assert not re.search(r"(?i)signature[=:]\s*[0-9a-f]{64}", caplog.text)
    assert s3.secret_key not in caplog.text


@pytest.mark.parametrize("open_it", [lambda s3: get_store(), through_boto3])
@pytest.mark.parametrize("length_is_known", [True, False])
def test_audio_is_not_logged_at_any_level(
    s3: StrictS3,
    caplog: pytest.LogCaptureFixture,
    length_is_known: bool,
    open_it: Callable[[StrictS3], Store],
) -> None:
    caplog.set_level(logging.DEBUG)
    body = AUDIO if length_is_known else AUDIO * (PART_BYTES // len(AUDIO) + 1)
    size = len(body) if length_is_known else None
    with open_it(s3).write("some/key", media_type="audio/wav", size=size, metadata={}) as writer:
        writer.write(memoryview(body))
        writer.commit({})
    assert s3.state()["objects"]
    assert caplog.records
    assert AUDIO.decode() not in caplog.text
