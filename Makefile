# `make demo` and `make test` need only a Python 3.11 or later; they build .venv themselves.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# One thread for each of the two test processes: more of them only fight over the same cores.
test doctest: export OMP_NUM_THREADS := 1

.NOTPARALLEL:
.PHONY: help demo test lint doctest docs clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

demo: $(VENV)/.recipes ## train a tiny network on handwritten digits, plain and with NetAug, and compare
	$(BIN)/python -m recipes.studies.demo --out runs/demo

test: $(VENV)/.dev ## run the tests (HYPOTHESIS_PROFILE=dev, ci, deep or sweep)
	$(BIN)/pytest -n 2

doctest: $(VENV)/.dev ## run the examples in the docstrings
	$(BIN)/pytest --doctest-modules netaugfx recipes

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs ## build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## delete .venv and everything that was built (not runs/)
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# A name on PATH is not yet a Python that runs (pyenv's shims), nor one that can make an environment (Debian
# without python3-venv), so each candidate is tried.
$(VENV)/bin/python:
	@for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Making $(VENV) with $$($$python --version) ($$(command -v $$python))"; \
	        exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "netaugfx needs Python 3.11 or later, with its venv module, and found none on PATH." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3 python3-venv; others: https://www.python.org/downloads/)" >&2; \
	echo "and run make again." >&2; \
	exit 1

# One stamp for each extra; made anew when the dependencies may have changed.
$(VENV)/.recipes $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing netaugfx[$*] into $(VENV): several gigabytes and some minutes the first time"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	@touch $@
