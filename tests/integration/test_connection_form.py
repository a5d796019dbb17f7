"""Connections to Recall.ai in a whole Airflow: the form, and what its button Test answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import requests

from include.recall.regions import REGIONS

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator
    from scripts.local_airflow import LocalAirflow

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]


def test_the_form_has_the_type_and_its_fields(airflow: LocalAirflow) -> None:
    login = {"username": airflow.login.user, "password": airflow.login.password}
    token = requests.post(f"{airflow.url}/auth/token", json=login, timeout=30).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    known = requests.get(f"{airflow.url}/ui/connections/hook_meta", headers=headers, timeout=60).json()
    (recall,) = [one for one in known if one["connection_type"] == "recall"]
    assert recall["hook_name"] == "Recall.ai"
    assert sorted(recall["extra_fields"]) == ["media_hosts", "region", "webhook_secrets"]
    assert recall["extra_fields"]["region"]["schema"]["enum"] == [*REGIONS]
    assert recall["standard_fields"]["password"]["title"] == "API key"
    assert {name for name, one in recall["standard_fields"].items() if one and one["hidden"]} == {"url_schema", "login"}


def test_the_button_says_what_is_right_or_wrong(airflow: LocalAirflow, simulator: RunningSimulator) -> None:
    def test(**change: Any) -> tuple[bool, str]:
        one = {**simulator.connection, **change}
        one["extra"] = json.dumps(one["extra"])
        answer = airflow.post("/connections/test", {"connection_id": "tried", **one})
        return answer["status"], answer["message"]

    good, said = test()
    assert good, said
    assert "knows the key" in said
    good, said = test(password="another-key")
    assert not good
    assert "the API key is wrong" in said
    assert "another-key" not in said
    assert test(host="http://127.0.0.1:9")[0] is False
