"""An archive with recordings in it, the source that they came from, and ways around both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import requests

from include.archive import verify
from include.archive.copy import Stop
from include.archive.layout import MANIFEST_NAME, PAGE_NAME, SPEAKERS_NAME, recording_folder
from include.archive.stores import LocalStore, open_store
from include.provider import transfer
from include.provider.hook import RecallHook
from include.provider.repair import Outcome, Repairer
from include.provider.transfer import Ends
from tests.include.archive.conftest import make_client
from tests.include.provider.conftest import LONG_AGO

if TYPE_CHECKING:
    from pathlib import Path

    from include.archive.stores import Store
    from include.archive.verify import Checked
    from include.simulator.process import RunningSimulator
    from tests.strict_s3.process import Process

BUCKET = "archive"
MADE = (PAGE_NAME, SPEAKERS_NAME)
"""What is made from a manifest, and which no look through the archive needs."""
LATER = time.time() + 3600


def s3_store(server: Process) -> Store:
    return open_store(f"s3://{BUCKET}/audio", s3_client=lambda: make_client(server.endpoint))


class World:
    """An archive with recordings in it, the source that they came from, and ways around both."""

    def __init__(self, simulator: RunningSimulator, store: Store, server: Process | None) -> None:
        hook = RecallHook()
        self.simulator = simulator
        self.store = store
        self.server = server
        self.ends = Ends(client=hook.get_conn(), media=hook.get_media(), store=store)

    def meeting(
        self, *, people: int = 2, parts: int = 2, size: int = 3200, created_at: str = LONG_AGO
    ) -> dict[str, Any]:
        """Archive a new recording; return its ids and its folder."""
        listed = [
            {"participant": {"id": number, "name": f"P{number}"}, "audio": {"seed": 100 * number + seed, "bytes": size}}
            for number in range(1, people + 1)
            for seed in range(parts)
        ]
        ids = self.simulator.add_meeting(created_at=created_at, recordings=[{"artifacts": [{"parts": listed}]}])[
            "recordings"
        ][0]
        recording = self.ends.client.get_recording(ids["id"])
        folder = recording_folder(recording.created_at, recording.id)
        receipts = [
            receipt
            for batch in transfer.plan(self.ends, [(recording.id, folder)])
            for receipt in transfer.archive(self.ends, batch, stop=Stop())
        ]
        transfer.settle(self.ends, recording.id, folder, bot_id=recording.bot_id, receipts=receipts, reasons={})
        return {**ids, "folder": folder}

    def delete_at_the_source(self, meeting: dict[str, Any]) -> None:
        for artifact in meeting["artifacts"]:
            url = f"{self.simulator.base_url}/api/v1/audio_separate/{artifact['id']}/"
            requests.delete(url, headers={"Authorization": self.simulator.api_key}, timeout=30).raise_for_status()

    def keys(self, folder: str) -> list[str]:
        """Return the parts, then the lists, then the manifest; not what is made from it, which nothing depends on."""
        keys = [info.key for info in self.store.list(f"{folder}/") if not info.key.endswith(MADE)]
        return sorted(keys, key=lambda key: key.endswith(MANIFEST_NAME))

    def content(self, key: str) -> bytes:
        if self.server is not None:
            return self.server.content(f"audio/{key}")
        return self._path(key).read_bytes()

    def _path(self, key: str) -> Path:
        assert isinstance(self.store, LocalStore)
        return self.store._root / key

    def flip(self, key: str, bit: int = 12_345) -> None:
        if self.server is not None:
            self.server.control("POST", "tamper", {"key": f"audio/{key}", "flip": bit})
        else:
            data = bytearray(self.content(key))
            data[bit // 8] ^= 1 << bit % 8
            with self._path(key).open("r+b") as file:
                file.write(data)

    def remove(self, key: str) -> None:
        if self.server is not None:
            self.server.control("POST", "tamper", {"key": f"audio/{key}", "delete": True})
        else:
            self._path(key).unlink()

    def state(self) -> dict[str, Any]:
        """Return each object, but for what is made from a manifest, with what would change if it were written anew."""
        if self.server is not None:
            objects = self.server.state()["objects"]
            return {
                key.removeprefix("audio/"): (one["sha256"], one["modified"])
                for key, one in objects.items()
                if not key.endswith(MADE)
            }
        root = self._path("")
        return {
            str(path.relative_to(root)): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
            for path in root.rglob("*")
            if path.is_file() and path.name not in MADE
        }

    def written(self) -> list[str]:
        """Return the keys of all writes that the S3 server has carried out since it was asked last.

        But for what is made from a manifest.
        """
        assert self.server is not None
        done = [
            entry["key"].removeprefix("audio/")
            for entry in self.server.journal()
            if entry["done"]
            and entry["operation"] in {"PutObject", "CompleteMultipartUpload", "DeleteObject"}
            and not entry["key"].endswith(MADE)
        ]
        self.server.control("DELETE", "journal")
        return done

    def look(self, **options: Any) -> list[Checked]:
        given = {"first": "", "last": "dt=9999", "unsettled_before": LATER, **options}
        return list(verify.look_through(self.store, **given))

    def repair(self) -> dict[str, Outcome]:
        """Look the archive through and repair; return what became of each finding."""
        repairer = Repairer(lambda: self.ends, stop=Stop())
        return {finding.key: outcome for checked in self.look() for finding, outcome in repairer.repair(checked)}

    def findings(self) -> list[str]:
        return [finding.key for checked in self.look() for finding in checked.findings]
