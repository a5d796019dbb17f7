"""The walls between the wings, checked on the source text of every module."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each wing may import from this project; a wing is always open to itself.
MAY_IMPORT = {
    "recall": {"include.errors"},
    "archive": {"include.errors"},
    "simulator": set(),
    "provider": {"include.errors", "include.recall", "include.archive"},
}
KNOWS_AIRFLOW = {"provider"}
HEAVY = {
    "boto3",
    "botocore",
    "numpy",
    "requests",
    "soundfile",
    "urllib3",
    "jsonschema",
    "include.recall.client",
    "include.archive.copy",
}


def modules(wing: str) -> list[Path]:
    return sorted((ROOT / "include" / wing).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("wing", sorted(MAY_IMPORT))
def test_wing_knows_only_what_it_may(wing: str) -> None:
    paths = modules(wing)
    assert paths
    allowed = MAY_IMPORT[wing] | {f"include.{wing}"}
    for path in paths:
        for name in imported(path):
            if is_below(name, "include"):
                assert any(is_below(name, one) for one in allowed), f"{path.name} imports {name}"
            if is_below(name, "airflow"):
                assert wing in KNOWS_AIRFLOW, f"{path.name} imports {name}"


def test_library_imports_neither_dags_nor_plugins_nor_tests() -> None:
    for path in sorted((ROOT / "include").rglob("*.py")):
        for name in imported(path):
            assert name.split(".")[0] not in {"dags", "plugins", "tests", "scripts"}, f"{path} imports {name}"


def test_no_file_edits_the_import_path() -> None:
    for folder in ("include", "dags", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert "sys.path" not in path.read_text("utf-8"), path


def test_plugins_hold_only_plugin_files() -> None:
    assert all(path.name.endswith("_plugin.py") for path in (ROOT / "plugins").rglob("*.py"))


def test_trigger_path_imports_to_the_same_class() -> None:
    from include.provider.triggers import RecallRecordingTrigger

    trigger = RecallRecordingTrigger(
        recall_conn_id="recall_default",
        bot_id="b",
        recording_id=None,
        poll_interval=None,
        media_timeout=1.0,
        wait_timeout=2.0,
        started_at=3.0,
    )
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    rebuilt = getattr(importlib.import_module(module), name)(**arguments)
    assert type(rebuilt) is RecallRecordingTrigger
    assert rebuilt.serialize() == (path, arguments)


@pytest.mark.parametrize("dag_file", sorted(path.name for path in (ROOT / "dags").glob("*.py")))
def test_dag_file_imports_nothing_heavy(dag_file: str) -> None:
    """Every mapped task parses the file anew, so what its top imports is paid once a participant."""
    program = (
        "import sys, runpy, airflow.sdk; before = set(sys.modules); "
        f"runpy.run_path({str(ROOT / 'dags' / dag_file)!r}); print('\\n'.join(set(sys.modules) - before))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name for name in printed for heavy in HEAVY if is_below(name, heavy)}


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}


def test_tasks_are_forked_from_processes_that_have_imported_their_needs(tmp_path: Path) -> None:
    code = (
        "import sys, airflow.executors.local_executor, airflow.settings as settings\n"
        "assert 'include.provider.transfer' in sys.modules and 'include.recall.client' in sys.modules\n"
        "assert not hasattr(settings, 'include') and not hasattr(settings, 'suppress')\n"
        "from include.recall.media import trusting\n"
        "assert trusting.cache_info().currsize == 1\n"
        "assert 'airflow.providers.amazon.aws.hooks.s3' in sys.modules and 'boto3' in sys.modules\n"
    )
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


@pytest.mark.parametrize("module", ["settings", "hook", "operators"])
def test_a_program_may_begin_with_any_of_our_modules(module: str, tmp_path: Path) -> None:
    """Airflow, which these import, then reads airflow_local_settings.py in the middle of it."""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", f"import include.provider.{module}"], env=environment, check=True)
