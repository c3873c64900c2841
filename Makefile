# `make` lists the targets. Each sets up what it needs in .venv; nothing is written
# outside this folder but the download caches of pip and uv.

# Which interpreter makes .venv:  PYTHON=python3.12 make test
PYTHON ?= python3
# More arguments for pytest:      make test-unit ARGS='-k backoff'
ARGS ?=
# A part of the benchmarks:       make bench ONLY=drain-1,eventflow
ONLY ?=
# One run of a simulation again: make simulate SEED=7; and how many: N=1000
SEED ?=
N ?=

BIN    := .venv/bin
UV     := $(BIN)/uv
PYTEST := $(BIN)/python -m pytest
READY  := .venv/.ready

# Read the system's certificates, as pip is told to on machines behind a proxy; never
# download an interpreter; install into .venv whatever environment the caller is in.
export UV_SYSTEM_CERTS := 1
export UV_PYTHON_DOWNLOADS := never
export VIRTUAL_ENV := $(CURDIR)/.venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONHOME PYTHONPATH

# A PYTHON named by the caller replaces an environment of another version.
ifneq ($(origin PYTHON),file)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(PYTHON) -V 2>&1),$(shell $(BIN)/python -V 2>&1))
.PHONY: $(UV)
endif
endif
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-contracts test-integration test-acceptance test-crashes bench bench-smoke simulate chaos mutants lint format types setup lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## run the main job on an embedded Postgres: schedule, kill, rescue, count
	@$(BIN)/eventflow demo

test: $(READY) ## every test: the four tiers and the examples in docstrings
	$(PYTEST) $(ARGS)

test-unit: $(READY) ## no database: unit tests and the examples in docstrings
	$(PYTEST) eventflow tests/unit $(ARGS)

test-contracts: $(READY) ## one suite for every implementation of a port
	$(PYTEST) tests/contracts $(ARGS)

test-integration: $(READY) ## the Postgres side: statements, roles, plans, recovery
	$(PYTEST) tests/integration $(ARGS)

test-acceptance: $(READY) ## real processes, started and killed
	$(PYTEST) tests/acceptance $(ARGS)

test-crashes: $(READY) ## a kill at every failpoint in every state of a job; not part of `make test`
	$(PYTEST) tests/crashes $(ARGS)

bench: $(READY) ## side by side with peers and the limit; goes on where it stopped; see benchmarks/README.md
	$(BIN)/python -m benchmarks.suite $(if $(ONLY),--only '$(ONLY)')

bench-smoke: $(READY) ## whether the benchmarks work, never how fast; under 2 minutes
	rm -rf .bench/smoke
	$(BIN)/python -m benchmarks.suite --smoke --results .bench/smoke

simulate: $(READY) ## workers, producers and faults in virtual time, 20,000 seeds; SEED=n tells the story of one, N=n plays so many
	$(BIN)/python -m reliability.simulator $(if $(SEED),--seed $(SEED),--seeds $(or $(N),20000))

chaos: $(READY) ## the same with real processes on a real Postgres, 30 schedules; SEED=n plays one, N=n so many
	$(BIN)/python -m reliability.rig $(if $(SEED),--seed $(SEED),--schedules $(or $(N),30))

mutants: $(READY) ## plant bugs and see who notices; ONLY=name for one, N=n for so many, others with every commit
	$(BIN)/python -m reliability.mutants $(if $(ONLY),--only '$(ONLY)') $(if $(N),--some $(N))

lint: $(READY) ## style, formatting, and which package may import which
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/lint-imports --no-cache --no-logo

format: $(READY) ## rewrite the code as `make lint` wants it
	$(BIN)/python -m ruff check --fix-only
	$(BIN)/python -m ruff format

types: $(READY) ## strict checking; tests/typing also as mypy users see it
	$(BIN)/python -m basedpyright
	$(BIN)/python -m mypy

setup: $(READY) ## only make .venv
	@echo '.venv is ready'

lock: $(UV) ## update requirements.lock to the newest versions pyproject.toml allows
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
		--all-extras --group dev --no-emit-index-url --custom-compile-command 'make lock' \
		--output-file requirements.lock pyproject.toml

clean: ## remove .venv, .bench, caches and builds; the data of `eventflow dev` stays in .eventflow
	rm -rf .venv .bench build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock holds every package with its hashes, the build backend included, so the
# project itself is built without isolation and without the network.
$(READY): $(UV) requirements.lock pyproject.toml
	@echo 'Installing the locked packages into .venv'
	@$(UV) pip sync --quiet --require-hashes requirements.lock
	@$(UV) pip install --quiet --offline --no-deps --no-build-isolation --editable .
	@touch $@

# pip installs the uv that the lock names, and checks its hash.
$(UV):
	@$(PYTHON) -c '' 2>/dev/null || { \
		echo '$(PYTHON) does not run. Name your Python 3.11 or later: PYTHON=python3.12 make test' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "eventflow needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
		echo 'Name another one: PYTHON=python3.12 make test' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments: it lacks ensurepip.' >&2; \
		echo 'On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear .venv
	@awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' requirements.lock > .venv/uv.lock
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement .venv/uv.lock
