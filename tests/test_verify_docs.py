"""The commands of docs/verify.md do what they say."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest

from include.archive import verify
from include.provider.params import verify_archive_params

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "verify.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_runs_are_started_with_params_that_are_valid() -> None:
    started = [shlex.split(line) for line in COMMANDS if line.startswith("airflow")]
    assert len(started) == 4
    params = verify_archive_params()
    for words in started:
        assert words[:4] == ["airflow", "dags", "trigger", "verify_archive"]
        conf = json.loads(words[words.index("--conf") + 1]) if "--conf" in words else {}
        for name, value in conf.items():
            jsonschema.validate(value, params[name].schema, format_checker=jsonschema.FormatChecker())
    assert set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| ", PAGE, re.MULTILINE)[0]) <= {*params, ""}


def test_modes_and_kinds_are_the_codes_own() -> None:
    assert all(f"`{mode}`" in PAGE for mode in verify.MODES)
    documented = set(re.findall(r"`([a-z_]+)`", " ".join(line for line in PAGE.splitlines() if line.startswith("| `"))))
    source = Path(verify.__file__).read_text("utf-8")
    kinds = set(re.findall(r'kind="([a-z_]+)"', source))
    assert kinds <= documented


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_what_is_left_and_what_it_should_be(tmp_path: Path) -> None:
    data = b"RIFF and so on"
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "part.wav").write_bytes(data)
    parts = [{"key": "participant=100/artifact/part.wav", "sha256": digest}, {"key": "other.wav", "sha256": "0" * 64}]
    (tmp_path / "manifest.json").write_text(json.dumps({"parts": parts}))
    problem = {"kind": "damaged", "key": "k", "action": None, "code": "media_deleted", "message": "gone"}
    problems = [problem, {**problem, "action": "replaced"}, {**problem, "kind": "extra"}]
    (tmp_path / "report.json").write_text(json.dumps({"problems": problems}))
    printed = [
        subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for line in COMMANDS
        if line.startswith(("jq", "sha256sum"))
    ]
    assert printed == ["damaged\tk\tmedia_deleted\tgone\n", f"{digest}  part.wav\n", f"{digest}\n"]
