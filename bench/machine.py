"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path


def machine() -> dict[str, str]:
    """Describe this machine and say what day it is."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": f"{os.cpu_count()} × {cpu}",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release().split("-")[0],
    }
