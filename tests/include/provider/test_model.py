"""A model of archiving: whatever is done in whatever order, the archive holds the truth or says that it doesn't."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from include.archive.copy import Stop
from include.archive.stores import open_store
from include.errors import CodedError
from include.provider import transfer
from include.provider.hook import RecallHook, folder_of
from include.recall.watch import look
from include.simulator.process import RunningSimulator, running_simulator
from tests.include.provider.conftest import LONG_AGO

SIZES = [0, 1, 3200, 40_000, 3_000_000]
CODES = {
    "content_conflict",
    "media_deleted",
    "media_expired",
    "media_failed",
    "media_forbidden",
    "parts_owed",
    "recording_not_found",
    "artifact_not_found",
    "stopped",
}


class Archiving(RuleBasedStateMachine):
    """One recording with five parts, and everything that may happen to it."""

    simulator: RunningSimulator

    def __init__(self) -> None:
        super().__init__()
        self.simulator.reset()
        self.root = Path(tempfile.mkdtemp(prefix="model-"))
        parts = [
            {"participant": {"id": number % 2, "name": f"P{number % 2}"}, "audio": {"seed": number, "bytes": size}}
            for number, size in enumerate(SIZES)
        ]
        ids = self.simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": parts}]}])
        self.recording_id, self.bot_id = ids["recordings"][0]["id"], ids["bot_id"]
        hook = RecallHook()
        self.ends = transfer.Ends(
            client=hook.get_conn(), media=hook.get_media(), store=open_store(self.root.as_uri(), s3_client=None)
        )
        (recording,) = look(self.ends.client, bot_id=self.bot_id).recordings
        self.folder = folder_of(recording.to_dict())
        truth = self.simulator.control("GET", f"/truth/{self.recording_id}")
        self.truth = {one["id"]: one for one in truth["artifacts"][0]["parts"]}
        self.tampered: dict[Path, bytes] = {}
        self.deleted = False
        self.manifest: bytes | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def run(self, *, stop_after: float | None = None) -> str:
        """Do what one run does and return its outcome or code."""
        stop = Stop()
        timer = None if stop_after is None else threading.Timer(stop_after, stop.set)
        if timer is not None:
            timer.start()
        try:
            settled = transfer.already_settled(self.ends.store, self.folder)
            if settled is None:
                receipts: list[dict[str, Any]] = []
                failure: CodedError | None = None
                for batch in transfer.plan(self.ends, [(self.recording_id, self.folder)]):
                    try:
                        receipts += transfer.archive(self.ends, batch, stop=stop)
                    except CodedError as error:
                        failure = failure or error
                settled = transfer.settle(
                    self.ends, self.recording_id, self.folder, bot_id=self.bot_id, receipts=receipts, reasons={}
                )
                assert failure is None or not receipts or settled.parts == len(SIZES)
        except CodedError as error:
            return error.code
        finally:
            if timer is not None:
                timer.cancel()
        return settled.outcome

    @rule()
    def archives(self) -> None:
        outcome = self.run()
        if not self.tampered and not self.deleted:
            assert outcome == "archived"
        else:
            assert outcome == "archived" or outcome in CODES

    @rule(after=st.floats(0, 0.1))
    def is_killed(self, after: float) -> None:
        outcome = self.run(stop_after=after)
        assert outcome == "archived" or outcome in CODES

    @rule(part=st.integers(0, len(SIZES) - 1))
    def loses_a_part_for_now(self, part: int) -> None:
        self.simulator.add_faults(
            {"origin": "media", "path": f"/{part}-0", "times": None, "action": {"status": 403, "body": "no"}}
        )
        outcome = self.run()
        self.simulator.control("DELETE", "/faults")
        assert outcome == "archived" or outcome in CODES

    @rule(at=st.integers(0, 3_000_000), ranges=st.booleans())
    def is_cut(self, at: int, ranges: bool) -> None:
        action = {"cut": at, **({} if ranges else {"ignore_range": True})}
        self.simulator.add_faults({"origin": "media", "times": 2, "action": action})
        outcome = self.run()
        self.simulator.control("DELETE", "/faults")
        assert outcome == "archived" or outcome in CODES

    @rule()
    def links_expire(self) -> None:
        self.simulator.advance(6 * 3600)

    @precondition(lambda self: self.stored())
    @rule(data=st.data())
    def somebody_tampers(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.stored()))
        body = bytearray(path.read_bytes() or b"x")
        body[-1] ^= 1
        path.write_bytes(bytes(body))
        self.tampered[path] = bytes(body)

    @precondition(lambda self: self.stored())
    @rule(data=st.data())
    def somebody_removes(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.stored()))
        path.unlink()
        self.tampered.pop(path, None)

    @precondition(lambda self: not self.deleted)
    @rule()
    def media_is_deleted(self) -> None:
        url = f"{self.simulator.base_url}/api/v1/recording/{self.recording_id}/"
        requests.delete(url, headers={"Authorization": self.simulator.api_key}, timeout=10)
        self.deleted = True

    def stored(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("participant=*/*/*") if path.is_file())

    @invariant()
    def nothing_half_written(self) -> None:
        assert not [path for path in self.root.rglob(".tmp-*")]

    @invariant()
    def every_object_is_the_truth_or_what_somebody_made_of_it(self) -> None:
        for path in self.stored():
            body = path.read_bytes()
            if path in self.tampered:
                assert body == self.tampered[path]
                continue
            source = self.truth[path.stem]
            payload = body[44 : 44 + source["length"]] if body else body
            assert hashlib.sha256(payload).hexdigest() == source["sha256"]

    @invariant()
    def manifest_is_written_once(self) -> None:
        path = self.root / self.folder / "manifest.json"
        if not path.exists():
            assert self.manifest is None
            return
        if self.manifest is None:
            self.manifest = path.read_bytes()
            listed = {one["key"]: one for one in json.loads(self.manifest)["parts"]}
            assert {one["part_id"] for one in listed.values()} == set(self.truth)
            for key, one in listed.items():
                assert hashlib.sha256((path.parent / key).read_bytes()).hexdigest() == one["sha256"]
        assert path.read_bytes() == self.manifest


@pytest.mark.timeout(240)
def test_archiving_keeps_its_promises_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.recall.retry.RetryPolicy.wait_after", lambda self, failure, tries: 0.01)
    monkeypatch.setattr("include.archive.copy.MAX_BACKOFF", 0.01)
    with running_simulator("--no-rate-limit") as simulator:
        Archiving.simulator = simulator
        os.environ["AIRFLOW_CONN_RECALL_DEFAULT"] = json.dumps(simulator.connection)
        try:
            run_state_machine_as_test(  # type: ignore[no-untyped-call]
                Archiving,
                settings=settings(
                    max_examples=int(os.environ.get("MODEL_EXAMPLES", "15")),
                    stateful_step_count=8,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            del os.environ["AIRFLOW_CONN_RECALL_DEFAULT"]
