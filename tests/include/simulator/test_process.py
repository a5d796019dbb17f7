"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import requests

from include.simulator.process import ROOT, running_simulator

COMMAND = [sys.executable, "-m", "include.simulator", "--port", "0", "--media-port", "0"]


def test_it_prints_one_line_of_json_and_a_block_for_people() -> None:
    with subprocess.Popen([*COMMAND, "--api-key", "other-key"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        process.terminate()
        block = process.stdout.read()
    assert process.returncode == 0
    assert facts["connection"] == {
        "conn_type": "recall",
        "host": facts["base_url"],
        "password": "other-key",
        "extra": {"region": "us-east-1", "media_hosts": [facts["media_host"]]},
    }
    line = next(line for line in block.splitlines() if "AIRFLOW_CONN_RECALL_DEFAULT=" in line)
    assert json.loads(line.partition("'")[2].rpartition("'")[0]) == facts["connection"]
    assert all(fact in block for fact in (facts["base_url"], facts["media_host"], "other-key"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_and_cleanly_even_with_open_answers(number: int) -> None:
    with subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        facts = json.loads(process.stdout.readline())
        stall = [{"times": None, "action": {"stall": 0}}]
        requests.post(f"{facts['control_url']}/faults", json=stall, timeout=60)

        def hang(url: str) -> None:
            try:
                requests.get(url, timeout=120)
            except requests.RequestException:
                return

        hanging = [
            threading.Thread(target=hang, args=(url,))
            for url in (f"{facts['base_url']}/api/v1/bot/", facts["media_url"])
        ]
        for thread in hanging:
            thread.start()
        while requests.get(f"{facts['control_url']}/journal", timeout=60).json()["count"] < 2:
            time.sleep(0.01)
        process.send_signal(number)
        try:
            # It waits for no answer: these would take an hour, and those who asked have more patience than this.
            assert process.wait(60) == 0
        finally:
            process.kill()
        for thread in hanging:
            thread.join()
        assert process.stderr.read() == ""


def test_options_set_speed_page_size_links_and_limits() -> None:
    with running_simulator(
        "--speed", "100", "--page-size", "1", "--link-seconds", "1", "--no-rate-limit", "--deleted", "gone"
    ) as simulator:
        settings: dict[str, Any] = simulator.control("POST", "/settings", {})
        assert settings == {
            "speed": 100.0,
            "link_seconds": 1.0,
            "page_size": 1,
            "deleted": "gone",
            "rate_limit": False,
            "strict_rate": False,
            "webhook_url": "",
            "webhook_headers": "webhook",
            "webhook_retry_speed": 1.0,
        }
        headers = {"Authorization": simulator.api_key}
        body = {"meeting_url": "https://acme.zoom.us/j/1", "recording_config": {"audio_separate_raw": {}}}
        bot_id = requests.post(f"{simulator.base_url}/api/v1/bot/", json=body, headers=headers, timeout=60).json()["id"]
        time.sleep(0.15)
        bot = requests.get(f"{simulator.base_url}/api/v1/bot/{bot_id}/", headers=headers, timeout=60).json()
        assert bot["status_changes"][-1]["code"] == "done"


def test_links_lead_to_the_host_that_the_client_used(simulator: Any) -> None:
    simulator.add_meeting()
    port, media_port = (address.rpartition(":")[2] for address in (simulator.base_url, simulator.media_host))
    headers = {"Authorization": simulator.api_key, "Host": f"recall.test:{port}"}
    answer = requests.get(f"{simulator.base_url}/api/v1/audio_separate/", headers=headers, timeout=60).json()
    link = answer["results"][0]["data"]["download_url"]
    assert link.startswith(f"http://recall.test:{port}/api/v1/download/")
    parts = requests.get(link.replace("recall.test", "127.0.0.1"), headers={"Host": "[::1]:80"}, timeout=60).json()
    assert parts[0]["download_url"].startswith(f"http://[::1]:{media_port}/")


def test_a_taken_port_is_reported(simulator: Any) -> None:
    port = simulator.base_url.rpartition(":")[2]
    command = [sys.executable, "-m", "include.simulator", "--port", port]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("cannot listen: ")
    assert "--port" in ended.stderr


def test_webhooks_by_the_command_line(simulator: Any) -> None:
    secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    options = [
        "--webhook-url",
        f"{simulator.base_url}/_sim/health",
        "--webhook-secret",
        secret,
        "--webhook-headers",
        "both",
    ]
    with running_simulator(*options, "--webhook-retry-speed", "1000000") as other:
        assert other.connection["extra"]["webhook_secrets"] == [secret]
        other.add_meeting()
        deadline = time.monotonic() + 60
        while not other.control("GET", "/webhooks")["deliveries"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_is_no_secret_is_refused() -> None:
    words = [*COMMAND, "--webhook-secret", "oops"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "whsec_" in done.stderr
