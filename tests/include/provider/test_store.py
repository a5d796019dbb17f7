"""The archive as a task opens it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from include.provider.hook import get_store
from tests.strict_s3.process import Process as StrictS3

if TYPE_CHECKING:
    import pytest

AUDIO = b"these are samples"


def test_audio_is_not_logged_at_any_level(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with StrictS3() as s3:
        aws = {
            "conn_type": "aws",
            "login": s3.access_key,
            "password": s3.secret_key,
            "extra": {"endpoint_url": s3.endpoint, "region_name": s3.region},
        }
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(aws))
        monkeypatch.setenv("AIRFLOW_VAR_RECALL_ARCHIVE_URI", f"s3://{s3.bucket}/audio")
        caplog.set_level(logging.DEBUG)
        with get_store().write("some/key", media_type="audio/wav", size=len(AUDIO), metadata={}) as writer:
            writer.write(memoryview(AUDIO))
            writer.commit({})
        assert s3.state()["objects"]
    assert caplog.records
    assert AUDIO.decode() not in caplog.text
