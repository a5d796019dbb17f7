"""The queries of docs/query.md, run on an archive that the pipeline itself has made."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from include.archive import manifest as manifests
from include.archive.layout import is_recording_folder
from include.archive.speakers import speech
from include.archive.stores import open_store
from include.errors import CodedError
from include.simulator.audio import demo_meeting
from tests.include.provider.conftest import LONG_AGO, shared_simulator, simulator
from tests.include.provider.test_transfer import Meeting, part, person

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.process import RunningSimulator

__all__ = ["shared_simulator", "simulator"]

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "query.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sql\n(.*?)^```", TEXT, flags=re.S | re.M)
TABLES = re.findall(r"CREATE EXTERNAL TABLE (\w+) \((.*?)\)\nPARTITIONED BY \(dt date\)", TEXT, flags=re.S)
HIVE_TYPES = {"VARCHAR": "string", "BIGINT": "bigint", "DOUBLE": "double"}


class Asked:
    """What the archive holds by its own manifests, and what each query of the page says."""

    def __init__(self, root: Path) -> None:
        self.store = open_store((root / "archive").as_uri())
        self.manifests = {
            folder: manifest
            for folder in manifests.recording_folders(self.store)
            if is_recording_folder(folder) and (manifest := manifests.load(self.store, folder))
        }
        self.connection = duckdb.connect()
        self.answers: dict[str, list[tuple[Any, ...]]] = {}
        for block in BLOCKS:
            name = block.splitlines()[0].removeprefix("-- ")
            self.answers[name] = self.connection.execute(block).fetchall()

    def answer(self, beginning: str) -> list[tuple[Any, ...]]:
        (found,) = [rows for name, rows in self.answers.items() if name.startswith(beginning)]
        return found


@pytest.fixture
def asked(simulator: RunningSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """Two demo meetings, one with a gap, one where nobody spoke, and one that is owed."""
    root = tmp_path / "archive"
    for _ in range(2):
        Meeting(simulator, root, participants=demo_meeting()["participants"]).run()
    Meeting(simulator, root, {"status": "failed", "parts": []}, {"parts": [part(1, 1), part(2, 2)]}).run()
    Meeting(simulator, root, {"parts": []}, participants=[person(1, "Kim \"the\" O'Hara, 'Jr'")]).run()
    owed = Meeting(simulator, root, {"parts": [part(1, 1), part(1, 2)]})
    simulator.add_faults({"origin": "media", "path": "/1-0", "times": None, "action": {"status": 403}})
    with pytest.raises(CodedError):
        owed.run()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tables").mkdir()
    asked = Asked(tmp_path)
    asked.owed = owed.folder  # type: ignore[attr-defined]
    yield asked
    asked.connection.close()


def test_the_answers_are_those_of_the_manifests(asked: Asked, tmp_path: Path) -> None:
    assert len(asked.manifests) == 4
    talk: dict[tuple[str, str], float] = defaultdict(float)
    shares = []
    kims = []
    for folder, manifest in sorted(asked.manifests.items()):
        seconds = speech(asked.store, folder, manifest).seconds()
        people = {one.id: one for one in manifest.participants}
        shares += [(folder, who, round(one, 1)) for who, one in seconds.items()]
        for who, spoken in seconds.items():
            talk[folder[3:10], people[who].email or people[who].name or "unknown"] += spoken
        for one in manifest.participants:
            if "kim" in f"{one.name} {one.email}".lower():
                kims.append((manifest.recording.id, one.id))
    assert {(month, who): seconds for month, who, _, seconds in asked.answer("talk time")} == {
        key: pytest.approx(seconds, abs=0.06) for key, seconds in talk.items()
    }
    assert sorted(row[:3] for row in asked.answer("share of")) == sorted(shares)
    by_folder: Counter[str] = Counter()
    for row in asked.answer("share of"):
        by_folder[row[0]] += row[3]
    assert by_folder == {folder: pytest.approx(1.0, abs=0.01) for folder in by_folder}

    (day,) = asked.answer("bytes per day")
    documents = [manifest.to_dict() for manifest in asked.manifests.values()]
    assert str(day[0]) == LONG_AGO[:10]
    assert day[1:4] == (
        4,
        sum(one["totals"]["parts"] for one in documents),
        sum(one["totals"]["bytes"] for one in documents),
    )
    assert day[4] == pytest.approx(sum(one["totals"]["audio_seconds"] for one in documents) / 3600, abs=0.01)

    (gap,) = asked.answer("gaps")
    assert (gap[3], gap[4]) == (None, "media_failed")
    assert asked.answer("owed") == [(asked.owed,)]  # type: ignore[attr-defined]
    assert sorted((row[1], row[3]) for row in asked.answer("find a participant")) == sorted(kims)
    assert len(kims) == 2 * 2 + 1

    objects = asked.answer("where the audio")
    assert len(objects) == 2 * 2
    assert all((tmp_path / "archive" / row[0]).is_file() for row in objects)
    events = asked.answer("who came")
    assert Counter(row[1] for row in events) == {"join": 15, "leave": 15}


def test_where_nobody_has_spoken_only_speech_fails(
    simulator: RunningSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Meeting(simulator, tmp_path / "archive", {"parts": []}, participants=[person(1, "Kim")]).run()
    monkeypatch.chdir(tmp_path)
    with duckdb.connect() as connection:
        with pytest.raises(duckdb.IOException, match=r"No files found .*speakers\.rttm"):
            connection.execute(BLOCKS[0])
        assert connection.execute("SELECT name FROM participants").fetchall() == [("Kim",)]


def test_what_athena_reads_is_what_was_exported(asked: Asked) -> None:
    assert [name for name, _ in TABLES] == ["parts", "talk_time"]
    for name, columns in TABLES:
        rows = asked.connection.execute(
            f"DESCRIBE SELECT * EXCLUDE (dt) FROM 'tables/{name}/dt=*/*.parquet'"
        ).fetchall()
        exported = [(row[0], HIVE_TYPES[row[1]]) for row in rows]
        declared = [tuple(one.split()) for one in columns.replace("\n", " ").split(",")]
        assert exported == declared
    documents = [manifest.to_dict() for manifest in asked.manifests.values()]
    counted = asked.connection.execute(
        "SELECT count(*), sum(bytes)::BIGINT FROM 'tables/parts/dt=*/*.parquet'"
    ).fetchone()
    assert counted == (
        sum(one["totals"]["parts"] for one in documents),
        sum(one["totals"]["bytes"] for one in documents),
    )
    spoken = asked.connection.execute(
        "SELECT count(*), sum(talk_seconds) FROM 'tables/talk_time/dt=*/*.parquet'"
    ).fetchone()
    assert spoken is not None
    assert spoken[0] == sum(len(one.participants) for one in asked.manifests.values())
    told = sum(sum(speech(asked.store, folder, one).seconds().values()) for folder, one in asked.manifests.items())
    assert spoken[1] == pytest.approx(told)


def test_the_snippet_of_the_other_page(asked: Asked) -> None:
    """docs/analysis.md, where only ``folder`` is given."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "analysis.md").read_text("utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M)
    for folder, manifest in asked.manifests.items():
        names: dict[str, Any] = {"folder": folder}
        exec(snippet, names)
        assert names["found"] == speech(asked.store, folder, manifest)


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == TEXT.count("```sql") == 11
