"""What every test stands on: an Airflow home of its own, no settings of the machine's, and no network but loopback."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from typing import Any

import pytest

for _name in [name for name in os.environ if name.startswith(("AIRFLOW", "AWS_", "RECALL_"))]:
    del os.environ[_name]
# Airflow reads its home when it is first imported, which is before any fixture runs.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

# The same examples every time, and none of them is too slow: the machine may be busy.
with suppress(ModuleNotFoundError):  # `make test-distributed` does without
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.register_profile("explore", settings.get_profile("steady"), derandomize=False)
    settings.load_profile("steady")


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test reached for {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
