# PYTHON: the interpreter (3.11 or newer) that .venv is made with. ARGS: more words for pytest, the benchmarks or the lock.
PYTHON ?= python3
UV ?= uv
ARGS ?=

RUN := .venv/bin/python -m
# Where it is set, each of the hundreds of processes of the suite would compile every module again.
unexport PYTHONDONTWRITEBYTECODE
SOURCES := $(wildcard pgqueuetopia tests benchmarks examples)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help .venv chaos demo test test-pg test-cockroach check lint types imports bench lock mutants clean

help: ## print this list
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv ## 2,000 mails over 50 queues, live, on the embedded PostgreSQL
	$(RUN) examples.demo

test: .venv ## the whole suite, in parallel (ARGS='-k words' for a part)
	$(RUN) pytest -n $$((2 * $$(getconf _NPROCESSORS_ONLN))) --dist worksteal $(ARGS)

test-pg: ## the suite against other server binaries: PG_BIN=/usr/lib/postgresql/15/bin
	@test -x "$(PG_BIN)/postgres" || { echo "PG_BIN must be a folder that holds initdb and postgres"; exit 2; }
	PGQUEUETOPIA_PG_BIN="$(PG_BIN)" $(MAKE) test

test-cockroach: .venv ## the table queues of its dialect on a real CockroachDB: DSN=postgresql://root@localhost:26257/test
	@test -n "$(DSN)" || { echo "DSN must be that of a database in which tables can be created"; exit 2; }
	PGQUEUETOPIA_COCKROACH_DSN="$(DSN)" $(RUN) pytest -n 0 tests/table -k cockroachdb $(ARGS)

check: lint types imports test ## everything that CI calls

lint: .venv ## ruff: rules and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: .venv ## mypy --strict
	$(RUN) mypy

imports: .venv ## the arrows between modules, by import-linter
	.venv/bin/lint-imports

bench: .venv/.plots ## the benchmarks (ARGS=name for one)
	$(RUN) benchmarks $(ARGS)

# $(1) into .venv, by uv where it is there.
define install
	@set -e; if command -v $(UV) >/dev/null; then set -x; \
		$(UV) pip install --quiet --python .venv/bin/python $(1); \
	else set -x; \
		$(RUN) pip install --quiet --disable-pip-version-check $(1); \
	fi
endef

.venv: .venv/.complete ## the environment, from requirements.lock (PYTHON=python3.12 chooses the interpreter)

# The stamp is written last, so that an interrupted install is made again.
.venv/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	rm -rf .venv
	@set -e; if command -v $(UV) >/dev/null; then set -x; \
		$(UV) venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv; \
	else set -x; \
		$(PYTHON) -m venv .venv; \
	fi
	$(call install,--require-hashes -r requirements.lock)
	$(call install,--no-deps --no-build-isolation -e .)
	@touch $@

# What draws the benchmarks' plots, which nothing else needs.
.venv/.plots: .venv/.complete benchmarks/requirements.lock
	$(call install,--require-hashes -r benchmarks/requirements.lock)
	@touch $@

# $(1) locked in $(2).
define compile
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" $(ARGS) $(1) --output-file $(2)
endef

lock: ## the lock files from pyproject.toml, by uv (ARGS=--upgrade for newer versions)
	$(call compile,--all-extras --group dev pyproject.toml,requirements.lock)
	$(call compile,--group plots --constraints requirements.lock,benchmarks/requirements.lock)

chaos: .venv ## break everything for CHAOS_SECONDS (600), and judge
	$(RUN) tests.chaos

mutants: .venv ## take out the lines that a promise hangs on, and see a test fail (ARGS='words' for some)
	$(RUN) tests.mutants $(ARGS)

clean: ## remove the environment, caches and builds
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
