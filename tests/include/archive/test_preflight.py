"""A store is tried before anything is fetched, and the trial leaves nothing behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import errors
from include.archive.stores import LocalStore
from include.archive.stores.s3 import S3Store
from tests.include.archive.conftest import BUCKET, make_client
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from pathlib import Path

    from tests.include.archive.support import Archive

FOLDER = "dt=2026-03-04/recording=r1"


def test_a_good_store_passes_and_stays_as_it_was(archive: Archive) -> None:
    archive.store.preflight(FOLDER)
    archive.store.preflight(FOLDER)
    assert archive.keys() == []
    assert archive.leftovers() == []


@pytest.mark.parametrize(
    "flags", ["--no-conditions", "--no-conditions-on-complete", "--no-conditions-on-complete --no-trailers"]
)
def test_a_store_that_ignores_conditions_is_refused(flags: str) -> None:
    with Process(*flags.split(), bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        store = S3Store(bucket=BUCKET, prefix="audio", client=make_client(server.endpoint))
        with pytest.raises(errors.ConditionsIgnoredError) as caught:
            store.preflight(FOLDER)
        assert (caught.value.code, caught.value.permanent) == ("conditions_ignored", True)
        assert list(store.list()) == []
        assert not server.state()["uploads"]


def test_a_good_store_replaces_one_version_alone(faithful: Archive) -> None:
    faithful.store.preflight(FOLDER, replacing=True)
    assert faithful.keys() == []
    assert faithful.leftovers() == []


def test_a_store_that_ignores_if_match_may_store_but_not_replace() -> None:
    with Process("--no-if-match", bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        store = S3Store(bucket=BUCKET, prefix="audio", client=make_client(server.endpoint))
        store.preflight(FOLDER)
        with pytest.raises(errors.ConditionsIgnoredError, match="If-Match"):
            store.preflight(FOLDER, replacing=True)
        assert list(store.list()) == []
        assert not server.state()["uploads"]


def test_what_killed_trials_left_is_removed(tmp_path: Path, bucket: Archive, strict: Process) -> None:
    (tmp_path / ".tmp-probe.0123456789abcdef").write_bytes(b"")
    LocalStore(root=tmp_path).preflight(FOLDER)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(bucket.store, S3Store)
    bucket.store.create_upload(f"{FOLDER}/probe.bin", media_type="x", metadata={})
    bucket.store.preflight(FOLDER)
    assert strict.state()["uploads"] == []


def test_an_upload_whose_id_was_lost_is_removed(bucket: Archive, strict: Process) -> None:
    """The store began an upload, its answer never came, and the library asked for another one."""
    strict.faults({"operation": "CreateMultipartUpload", "action": "drop", "when": "after"})
    assert isinstance(bucket.store, S3Store)
    kept = bucket.store.create_upload(f"{FOLDER}/a.ogg", media_type="x", metadata={})
    assert [upload["upload_id"] for upload in strict.state()["uploads"]] == [kept]


def test_trials_side_by_side_disturb_nobody(bucket: Archive, strict: Process) -> None:
    """One takes the other's upload away; that one tries again."""
    strict.faults({"operation": "UploadPart", "action": "error", "code": "NoSuchUpload"})
    bucket.store.preflight(FOLDER)
    assert strict.state()["uploads"] == []


def test_a_store_that_only_redirects(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": ".*", "action": "error", "code": "PermanentRedirect", "status": 301, "times": None})
    with pytest.raises(errors.WrongRegionError):
        bucket.store.stat(f"{FOLDER}/a.ogg")


def test_a_local_archive_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **more: Any) -> int:
        raise PermissionError(13, "Permission denied")

    store = LocalStore(root=tmp_path)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(errors.StorageDeniedError):
        store.preflight(FOLDER)
