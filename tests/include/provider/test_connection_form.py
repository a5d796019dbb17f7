from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException

from include.provider import connection_test
from include.provider.hook import RecallHook
from include.recall import regions
from include.recall.errors import RecallConfigError
from include.recall.regions import REGIONS

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator

PROJECT = Path(__file__).parents[3]
# A process of its own: Airflow's list of providers is made once, and other tests may have made it.
ASK = """
import json
from airflow.providers_manager import ProvidersManager
manager = ProvidersManager()
hook = manager.hooks["recall"]
fields = manager.connection_form_widgets
print(json.dumps({
    "name": hook.hook_name, "class": hook.hook_class_name, "id": hook.connection_id_attribute_name,
    "testable": hook.connection_testable,
    "fields": sorted(name for name in fields if name.startswith("extra__recall__")),
    "hidden": manager.field_behaviours["recall"]["hidden_fields"],
}))
"""


def test_airflow_offers_the_connection_type_with_its_form(tmp_path: Path) -> None:
    env = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    said = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, check=True, text=True).stdout
    assert json.loads(said.splitlines()[-1]) == {
        "name": "Recall.ai",
        "class": "include.provider.hook.RecallHook",
        "id": "recall_conn_id",
        "testable": True,
        "fields": [f"extra__recall__{name}" for name in ("media_hosts", "region", "webhook_secrets")],
        "hidden": ["schema", "login"],
    }


def test_the_provider_has_the_projects_version() -> None:
    metadata = (PROJECT / "recall_audio_archive.dist-info" / "METADATA").read_text("utf-8")
    project = (PROJECT / "pyproject.toml").read_text("utf-8")
    assert re.findall(r"(?m)^Version: (.+)$", metadata) == re.findall(r'(?m)^version = "(.+)"$', project)


def test_a_connection_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(conn_id: str) -> NoReturn:
        raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")

    async def missing_soon(conn_id: str) -> NoReturn:
        missing(conn_id)

    hook = RecallHook("recall_other")
    monkeypatch.setattr(hook, "get_connection", missing)
    monkeypatch.setattr(hook, "aget_connection", missing_soon)
    with pytest.raises(RecallConfigError, match="recall_other") as caught:
        hook.get_conn()
    with pytest.raises(RecallConfigError, match="recall_other"):
        asyncio.run(hook.aget_poller(1))
    assert caught.value.code == "bad_config"
    assert not caught.value.permanent, "a secrets backend that doesn't answer looks the same"


def connect(monkeypatch: pytest.MonkeyPatch, **connection: Any) -> RecallHook:
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", json.dumps({"conn_type": "recall", **connection}))
    return RecallHook()


def test_a_good_key_costs_one_list_call(shared_simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = connect(monkeypatch, **shared_simulator.connection)
    before = len(shared_simulator.journal())
    good, message = hook.test_connection()
    assert good
    assert "knows the key; no webhook secret" in message
    assert [(one["method"], one["path"]) for one in shared_simulator.journal()[before:]] == [
        ("GET", "/api/v1/recording/")
    ]


def test_secrets_and_hosts_are_counted_and_named(
    shared_simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"whsec_{base64.b64encode(bytes(24)).decode()}"
    extra = {"webhook_secrets": [secret], "media_hosts": ["10.0.0.7:9000"]}
    good, message = connect(monkeypatch, **{**shared_simulator.connection, "extra": extra}).test_connection()
    assert good
    assert "webhook secrets: 1; audio may also come from 10.0.0.7:9000" in message
    assert secret not in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"password": "another-key"}, "the API key is wrong"),
        ({"password": ""}, "no password"),
        ({"host": "http://127.0.0.1:9"}, "Is there a way to Recall"),
        ({"host": None, "extra": {"region": "mars-1"}}, "unknown Recall region"),
        ({"host": None, "extra": {}}, "names neither"),
        ({"extra": {"media_hosts": 7}}, "media_hosts"),
        ({"extra": {"webhook_secrets": ["whsec_short"]}}, "a webhook secret is not whsec_"),
    ],
)
def test_a_bad_connection_is_told_what_to_mend(
    shared_simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    good, message = connect(monkeypatch, **{**shared_simulator.connection, **change}).test_connection()
    assert not good
    assert says in message


def test_a_key_of_another_region_is_told_its_region(
    shared_simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = shared_simulator.connection["host"]
    addresses = {region: f"{api}/nowhere" for region in REGIONS} | {"eu-central-1": api}
    for module in (regions, connection_test):
        monkeypatch.setattr(module, "base_url_of", addresses.__getitem__)
    key = shared_simulator.connection["password"]
    refusal = {"path": "^/nowhere/", "times": None, "action": {"status": 401, "body": '{"detail": "Invalid token."}'}}
    shared_simulator.add_faults(refusal)
    good, message = connect(monkeypatch, password=key, extra={"region": "us-east-1"}).test_connection()
    assert not good
    assert message == "This key is of another region: choose eu-central-1."
