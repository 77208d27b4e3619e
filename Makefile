# Every target makes what it needs; only Python >= 3.11 and make are taken for granted.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check types lint imports bench matrix fmt clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --allow-existing --python '>=3.11' $(VENV) && uv pip install -q --python $(BIN)/python -e '.[redis,demo,grpc]' --group dev; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "otel-tokens needs Python >= 3.11 (set PYTHON=...)" >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --upgrade pip && $(BIN)/python -m pip install -q -e '.[redis,demo,grpc]' --group dev; \
	fi
	@touch $@

demo: $(STAMP) ## meter real OpenAI and Anthropic SDKs against a loopback model, and show what comes out
	@$(BIN)/otel-tokens demo

test: $(STAMP) ## run the tests on the newest SDKs
	@$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP) lint types imports test ## everything CI checks on the newest SDKs

lint: $(STAMP) ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP) ## pyright, strict on the package
	@$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP) ## the arrows between the rooms
	@$(BIN)/lint-imports

matrix: $(STAMP) ## the contract tests on the older SDK majors too, each in an environment of its own
	@$(BIN)/python tests/matrix.py

bench: $(STAMP) ## cost of running, as ratios against a hand-written floor
	@$(BIN)/python -m benchmarks

fmt: $(STAMP) ## format and fix
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove the environment and what tests left
	@rm -rf $(VENV) .pytest_cache .ruff_cache build dist
