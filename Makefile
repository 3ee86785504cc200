# Every target of `make help` sets itself up: .venv is made with the python3 that is there and brought up to date when the
# lock changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
STAMP := $(VENV)/.installed
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-clients test-faults check lint types fast-served fast-train fast-rest bench lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Sightline needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing the locked packages into $(VENV) ..."
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@# Where Python may not keep what it compiles, every process would compile torch and Ray anew: 20 s each.
	@test -z "$$PYTHONDONTWRITEBYTECODE" || { echo "compiling them ..."; $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true; }
	@touch $@

demo: $(STAMP)  ## solar cells: train, publish, serve, score; prints what came out
	@$(BIN)/python -m jobs.demo

serve: $(STAMP)  ## keep the newest bundle up at http://localhost:8000 until Ctrl-C; MODEL=name for another
	@$(BIN)/python -m jobs.serve $(MODEL)

test: $(STAMP)  ## every test that can run on this machine
	$(BIN)/python -m pytest

test-clients: $(STAMP)  ## Triton's and KServe's clients, in an environment of their own, against a served model
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(BIN)/uv pip install --quiet --python $(CLIENTS)/bin/python -r tests/clients/requirements.txt
	$(BIN)/python -m tests.clients.serve $(CLIENTS)/bin/python

test-faults: $(STAMP)  ## what breaks on purpose: killed processes, lost nodes, upgrades, stores, slow clients
	$(BIN)/python -m pytest -m faults tests/faults tests/e2e tests/jobs/tune

check: $(STAMP)  ## lint, format, types, drift and the fast tests: under a minute
	@$(MAKE) --no-print-directory --output-sync --keep-going -j3 fast-train fast-served fast-rest types lint

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m cluster.render --check

types:
	$(BIN)/mypy

# The fast tests in three processes at once, since many of them wait for something. Those of models
# and serving do without torch, which takes ten seconds to load.
# All keep what Python and pytest compile of our files, whatever the environment says: compiling it
# anew takes five seconds a process.
FAST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -m "not ray and not e2e and not slow"

fast-served:
	$(FAST) tests/models tests/serve_app tests/cluster

TRAINING := tests/jobs/train tests/jobs/tune tests/jobs/evaluate

fast-train:
	$(FAST) $(TRAINING)

fast-rest:
	$(FAST) $(patsubst %,--ignore=%,tests/models tests/serve_app tests/cluster tests/e2e tests/faults $(TRAINING))

bench: $(STAMP)  ## the quick serving benchmark; others: python -m benchmarks.NAME
	$(BIN)/python -m benchmarks.serving --quick

lock: $(STAMP)  ## resolve requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --extra demo --extra dev --universal --upgrade \
	  --generate-hashes --no-annotate --no-header --output-file requirements.lock

clean:  ## remove what the other targets made here, trained models included
	rm -rf $(VENV) $(CLIENTS) .sightline build dist *.egg-info benchmarks/out .pytest_cache .mypy_cache .ruff_cache .hypothesis
