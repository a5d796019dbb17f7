"""The programs of docs/own-dags.md run as they stand, and docs/install.md's files are what they are said to be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import Connection

from include.archive.copy import Stop
from include.archive.layout import recording_folder
from include.provider.hook import RecallHook, get_store
from include.provider.operators import open_ends
from include.provider.transfer import archive, plan, settle
from tests.include.provider.conftest import LONG_AGO, shared_simulator, simulator

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator

__all__ = ["shared_simulator", "simulator"]

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-dags.md").read_text("utf-8"), re.DOTALL)
SNIPPETS = [block for block in BLOCKS if "@dag(" not in block and not block.startswith(" ")]
INSTALL = (ROOT / "docs" / "install.md").read_text("utf-8")


@pytest.fixture
def ids(simulator: RunningSimulator) -> dict[str, Any]:
    """The ids of an archived meeting."""
    part = {"participant": {"id": 7, "name": "Ada"}, "audio": {"seed": 1, "bytes": 3200}, "relative": 2}
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": [part]}]}])
    recording_id = ids["recordings"][0]["id"]
    ends = open_ends(RecallHook.default_conn_name, "aws_default")
    folder = recording_folder(ends.client.get_recording(recording_id).created_at, recording_id)
    receipts = [one for batch in plan(ends, [(recording_id, folder)]) for one in archive(ends, batch, stop=Stop())]
    settle(ends, recording_id, folder, bot_id=ids["bot_id"], receipts=receipts, reasons={})
    return ids


def program(words: str) -> str:
    (found,) = [block for block in SNIPPETS if words in block]
    return found


def test_all_programs_are_looked_at() -> None:
    assert len(BLOCKS) == 5
    assert len(SNIPPETS) == 2


def test_reading_the_archive(ids: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    recording_id = ids["recordings"][0]["id"]
    names: dict[str, Any] = {}
    exec(re.sub(r'"7c0e1b52-[0-9a-f-]+"', repr(recording_id), program("find(store")), names)
    who, start, duration, uri = capsys.readouterr().out.split()
    assert (who, start, duration) == ("7", "2.0", "0.1")
    assert uri.startswith(f"file:///{get_store().uri('').removeprefix('file:///')}")
    assert len(names["audio"]) == 44 + 3200


def test_asking_recall(ids: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(re.sub(r'"b0b3d1f8-[0-9a-f-]+"', repr(ids["bot_id"]), program("list_recordings")), {})
    assert capsys.readouterr().out.startswith(f"{ids['recordings'][0]['id']} done ")


def test_an_astro_project_leaves_airflow_to_its_image(tmp_path: Path) -> None:
    section = INSTALL.partition("\n## Astro\n")[2].partition("\n## ")[0]
    (commands,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    for name in ("requirements.txt", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, timeout=60)
    packages = {line.partition("==")[0] for line in (tmp_path / "requirements.txt").read_text().splitlines()}
    assert {"apache-airflow-providers-amazon", "requests"} <= packages
    assert "apache-airflow" not in packages
    assert (tmp_path / ".env").read_text() == (ROOT / ".env.example").read_text()
    assert (ROOT / "Dockerfile").read_text().startswith("FROM astrocrpublic.azurecr.io/runtime:3.3-")
    assert all((ROOT / name).exists() for name in ("packages.txt", ".astro/config.yaml"))


def test_the_samples_are_connections() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    samples = [line.lstrip("# ").partition("=") for line in lines if "AIRFLOW_CONN_" in line and "=" in line]
    kinds = []
    for name, _, value in samples:
        connection = Connection.from_json(value, conn_id=name.removeprefix("AIRFLOW_CONN_").lower())
        kinds.append((connection.conn_id, connection.conn_type))
    assert set(kinds) == {("recall_default", "recall"), ("aws_default", "aws")}
    assert len(kinds) == 4


def test_the_plain_way_sets_what_every_component_needs() -> None:
    section = INSTALL.partition("\n## Plain Airflow\n")[2].partition("\n## ")[0]
    exported = dict(re.findall(r"^export (\w+)=(.*)$", section, re.MULTILINE))
    assert json.loads(exported["AIRFLOW_CONN_RECALL_DEFAULT"].strip("'"))["conn_type"] == "recall"
    assert exported["PYTHONPATH"] == '"$PWD"'
    assert {"AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER", "AIRFLOW_VAR_RECALL_ARCHIVE_URI"} <= set(
        exported
    )
