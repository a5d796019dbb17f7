# Every path here is relative, so the project may live in a folder with spaces in its name.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-distributed chaos kills saboteurs bench bench-airflow docs lint format lock simulator clean

export PYTHONPATH := $(CURDIR)
# The same text in and out, whatever the locale.
export PYTHONUTF8 := 1

PY := .venv/bin/python
DISTRIBUTED := .venv-distributed/bin/python

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' Makefile

setup: ## build the environment in .venv (PYTHON=... picks the interpreter)
	@sh scripts/setup.sh

run: setup ## start Airflow and archive one meeting (see README for an account's settings)
	@$(PY) scripts/run.py

test: setup ## run all tests (ARGS=... is handed to pytest)
	@$(PY) -m pytest -q --durations=10 $(ARGS)

test-distributed: setup ## lose a worker and a triggerer of an Airflow with Celery, Redis and PostgreSQL
	@.venv/bin/uv venv -q --allow-existing --python $(PY) .venv-distributed
	@.venv/bin/uv pip sync -q --python $(DISTRIBUTED) --require-hashes requirements/distributed.lock
	@$(DISTRIBUTED) -m pytest -q tests/deploy
	@$(DISTRIBUTED) -m tests.distributed.campaign $(ARGS)

saboteurs: setup ## break the code on purpose, in a copy, and see that a test notices (ONLY=id for one)
	@$(PY) -m tests.saboteurs.run $(if $(ONLY),--only $(ONLY)) $(ARGS)

chaos: setup ## kill, cut and starve hundreds of runs and judge what they leave (SEED=... plays one again)
	@$(PY) -m tests.chaos.campaign --schedules 500 $(ARGS)
	@$(if $(SEED),true,$(MAKE) -s kills)
	@$(PY) -m tests.chaos.airflow_campaign --schedules 60

kills: setup ## kill runs at random moments, archiving and deleting ones around every call, and race writers
	@$(PY) -m tests.chaos.campaign --only "E01 SIGKILL at any moment" --schedules 100
	@$(PY) -m tests.chaos.campaign --only D09 --schedules 100
	@$(PY) -m tests.chaos.storage_calls
	@$(PY) -m tests.chaos.deletions

bench: setup ## measure the engine beside its peers and write docs/performance.md (ARGS=--quick for a look)
	@.venv/bin/uv venv -q --allow-existing --python $(PY) .venv-bench
	@.venv/bin/uv pip sync -q --python .venv-bench/bin/python --require-hashes requirements/bench.lock
	@$(PY) -m bench $(ARGS)
	@$(if $(ARGS),true,$(PY) -m bench.memory && $(MAKE) -s bench-airflow && $(PY) -m bench.report)

bench-airflow: setup ## measure Airflow's own share alone, with PostgreSQL where the machine has it
	@.venv/bin/uv venv -q --allow-existing --python $(PY) .venv-distributed
	@.venv/bin/uv pip sync -q --python $(DISTRIBUTED) --require-hashes requirements/distributed.lock
	@$(DISTRIBUTED) -m bench.airflow_share --profile

docs: setup ## build the documentation as a site in the folder site, with every link checked
	@$(PY) -m scripts.settings_page
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

lint: setup ## check style, types and pins
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy include scripts bench $(wildcard plugins/*.py)
	@$(PY) scripts/check_pins.py

format: setup ## rewrite the code in the project's style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

lock: setup ## compile the lock files in requirements/ anew
	@for name in dev distributed bench; do \
		.venv/bin/uv pip compile --universal --python-version 3.10 --generate-hashes --no-header \
			-q -o requirements/$$name.lock requirements/$$name.in || exit 1; \
	done

simulator: setup ## start the stand-in for Recall alone (ARGS=... is handed to it)
	@$(PY) -m include.simulator $(ARGS)

clean: ## remove the environment, run data and caches; the archive stays
	@rm -rf .venv .venv-bench .venv-distributed .run site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
