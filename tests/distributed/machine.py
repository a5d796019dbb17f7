"""What tells the pretended machines apart."""

from __future__ import annotations

import os

VARIABLE = "DISTRIBUTED_MACHINE"


def name() -> str:
    """Give the name under which Airflow's components know this machine, in place of the host's own."""
    return os.environ[VARIABLE]
