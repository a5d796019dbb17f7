"""The examples of the README are accepted as they stand."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from include.simulator.process import ROOT


def test_examples_are_accepted(simulator: Any, api: Any) -> None:
    text = (ROOT / "include" / "simulator" / "README.md").read_text("utf-8")
    meeting, rules = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    ids = simulator.add_meeting(**meeting)
    assert [len(artifact["parts"]) for artifact in ids["recordings"][0]["artifacts"]] == [4, 0]
    assert api.get(f"/bot/{ids['bot_id']}/")["status_changes"][2]["sub_code"] == "call_ended_by_host"
    simulator.add_faults(*rules)
    assert [rule["applied"] for rule in simulator.control("GET", "/faults")["rules"]] == [0, 0, 0, 0]


def test_a_meeting_with_a_broken_link(simulator: Any) -> None:
    text = (ROOT / "include" / "simulator" / "README.md").read_text("utf-8")
    section = text.partition("\n## A meeting of your own\n")[2].partition("\n## ")[0]
    make, spoil, mend = (shlex.split(line) for line in re.findall(r"```sh\n(.*?)```", section, re.DOTALL))

    def send(words: list[str]) -> Any:
        (path,) = (word.partition("/_sim")[2] for word in words if "/_sim/" in word)
        data = words[words.index("-d") + 1] if "-d" in words else None
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if data else "GET"
        return simulator.control(method, path, json.loads(data) if data else None)

    artifact = send(make)["recordings"][0]["artifacts"][0]
    assert artifact["parts_count"] == 4
    (rule,) = send([word.replace("ARTIFACT", artifact["id"]) for word in spoil])["rules"]
    assert re.search(rule["path"], f"/{artifact['id']}/3-0")
    send(mend)
    assert simulator.control("GET", "/faults")["rules"] == []


def test_every_action_is_in_the_table() -> None:
    from include.simulator.faults import Action

    text = (ROOT / "include" / "simulator" / "README.md").read_text("utf-8")
    assert [name for name in Action.model_fields if f"`{name}`" not in text] == []


def test_rules_for_webhooks_are_accepted_and_all_are_in_the_table(simulator: Any) -> None:
    from include.simulator.webhooks import WebhookRule

    text = (ROOT / "include" / "simulator" / "README.md").read_text("utf-8")
    (block,) = re.findall(r'```json title="webhooks"\n(.*?)```', text, re.DOTALL)
    shown = simulator.control("POST", "/webhooks/faults", json.loads(block))["rules"]
    assert [{**rule, "matched": 0, "applied": 0} for rule in json.loads(block)] == shown
    assert [name for name in WebhookRule.model_fields if f"`{name}`" not in text] == []
