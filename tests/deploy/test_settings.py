"""The shipped settings name options that exist, and hold no secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from airflow.configuration import conf
from airflow.providers_manager import ProvidersManager

from include.provider import settings
from include.provider.hook import RecallHook

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
HELM = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text())
CONNECTIONS = {RecallHook.default_conn_name, "aws_default"}
OF_CELERY = {"celery", "celery_broker_transport_options"}
"""Sections of the configuration that belong to a provider which only `make test-distributed` installs."""


def celery_env() -> dict[str, str]:
    lines = (DEPLOY / "celery.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def helm_env() -> Iterator[str]:
    yield from (one["name"] for one in HELM["env"])
    yield from (one["envName"] for one in HELM["secret"])
    for section, options in HELM["config"].items():
        yield from (f"AIRFLOW__{section}__{option}".upper() for option in options)


def problem(name: str) -> str | None:
    """Say why nothing reads an environment variable; None if something does.

    :raises LookupError: it belongs to the Celery provider, and that is not installed.
    """
    if match := re.fullmatch(r"AIRFLOW__([A-Z0-9_]+?)__([A-Z0-9_]+)", name):
        section, option = match[1].lower(), match[2].lower()
        providers = dict(ProvidersManager().provider_configs)
        known: dict[str, Any] = {**conf.configuration_description}
        for options in providers.values():
            known |= options
        if section in OF_CELERY and "apache-airflow-providers-celery" not in providers:
            raise LookupError("the Celery provider is not installed")
        return None if option in known.get(section, {"options": {}})["options"] else "no such option"
    if name.startswith("AIRFLOW_VAR_"):
        return None if name[12:].lower() in {one.name for one in settings.SETTINGS} else "no such Variable"
    if name.startswith("AIRFLOW_CONN_"):
        return None if name[13:].lower() in CONNECTIONS else "no such connection"
    return None if name == "PYTHONPATH" else "not a setting"


@pytest.mark.parametrize("name", sorted({*celery_env(), *helm_env()}))
def test_a_shipped_setting_exists(name: str) -> None:
    try:
        assert problem(name) is None
    except LookupError as error:
        pytest.skip(f"{error}: `make test-distributed` checks it")


@pytest.mark.parametrize(
    "name",
    ["AIRFLOW__CORE__PARALELISM", "AIRFLOW__NOWHERE__PARALLELISM", "AIRFLOW_VAR_RECALL_ARCHIVE", "AIRFLOW_CONN_RECALL"],
)
def test_a_misspelt_setting_is_found(name: str) -> None:
    assert problem(name)


def test_both_files_agree() -> None:
    env = celery_env()
    for section, options in HELM["config"].items():
        for option, value in options.items():
            assert env[f"AIRFLOW__{section}__{option}".upper()] == value
    assert env["AIRFLOW__CORE__EXECUTOR"] == HELM["executor"]


def test_no_secret_is_shipped() -> None:
    for name, value in celery_env().items():
        if re.search("KEY|SECRET|CONN_", name) and "SQL_ALCHEMY" not in name and "CONN_ID" not in name:
            assert value == "", name
        assert "@" not in value or ":PASSWORD@" in value, name
