# kwhy: `make demo` shows it, `make test` checks it, `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTEST_ARGS ?=
# Two at a time, each with guests of its own; a file stays whole, for its guests are its own too.
TWO := -n 2 --dist loadfile

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## the virtual environment in .venv, exactly as locked

# The stamp holds the hash of what the environment was made from: an edit of the lock file remakes
# it, a mere checkout (which only touches times) does not.
LOCK_HASH := $(shell cat requirements.lock pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(LOCK_HASH))
.PHONY: $(STAMP)
endif
$(STAMP):
	./.ci/prepare
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	echo $(LOCK_HASH) > $@

.PHONY: demo
demo: venv ## the field reports, live, in a lab guest
	$(BIN)/kwhy demo

.PHONY: lint
lint: venv ## ruff, mypy --strict, and Python 3.6 for the agent
	$(BIN)/ruff check src tests $(wildcard bench)
	$(BIN)/mypy
	if [ -d src/kwhy/agent ]; then \
		$(BIN)/vermin --quiet --no-tips --violations --eval-annotations -t=3.6- src/kwhy/agent; fi

.PHONY: test
test: lint ## lint, unit tests, lab tests in real guests
	$(BIN)/python -m pytest -m "not slow" $(TWO) $(PYTEST_ARGS)

.PHONY: test-all
test-all: lint ## all of that and the tests that take minutes
	$(BIN)/python -m pytest $(TWO) $(PYTEST_ARGS)

.PHONY: unit
unit: venv ## the unit tests alone (seconds)
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

.PHONY: bench
bench: venv ## the measurements beside trace-cmd, strace, drgn and gdb
	$(BIN)/python -m bench
	$(BIN)/python -m bench.hang
	$(BIN)/python -m bench.arguments

.PHONY: lock
lock: venv ## remake requirements.lock from pyproject.toml
	$(BIN)/pip-compile --quiet --extra dev --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--output-file requirements.lock pyproject.toml

.PHONY: clean
clean: ## the virtual environment and tool caches (the lab's cache stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
