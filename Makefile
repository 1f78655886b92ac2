# twotower: `make` lists the targets. Needs Python 3.11 to 3.13 and make; everything else is installed into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
SERVE ?= 1
SESSIONS ?= 60000
WORKERS ?= 2
BIN := .venv/bin
FAISS := $(if $(shell command -v nvidia-smi),gpu,cpu)
# A folder of local wheels, where pip is set up with one, may hold a CPU torch; elsewhere uv picks the build.
LOCAL_TORCH := $(firstword $(foreach folder,$(PIP_FIND_LINKS),$(wildcard $(folder)/torch-*.whl)))
TORCH_BACKEND := $(if $(LOCAL_TORCH),,--torch-backend=auto)

export OMP_WAIT_POLICY ?= PASSIVE
export UV_COMPILE_BYTECODE := 1
export UV_LINK_MODE := copy
export VIRTUAL_ENV := $(CURDIR)/.venv

.PHONY: help install demo test lint test-slow test-crash test-gpu format docs lock clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: .venv/.installed ## create .venv with everything that the lock file names

.venv/.installed: pyproject.toml uv.lock
	@echo "installing into .venv (faiss-$(FAISS)); once, about a minute"
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
		"twotower needs Python 3.11 to 3.13; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv export --quiet --frozen --no-hashes --no-emit-project --prune torch --extra $(FAISS) \
		--output-file .venv/requirements.txt
	@UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet torch==2.13.0 $(TORCH_BACKEND)
	@$(BIN)/uv pip install --requirement .venv/requirements.txt --editable . 2>&1 | tail -n 3
	@touch $@

demo: install ## simulated shop: logs, training, results table, then the API and the page (SERVE=0: stop at the table)
	@test -f work/shop/data/manifest.json || $(BIN)/twotower simulate work/shop/data --sessions $(SESSIONS)
	@$(BIN)/twotower run configs/shop.yaml
	@if [ "$(SERVE)" != 0 ]; then $(BIN)/twotower serve work/shop; fi

test: lint ## the whole suite, at most 8 minutes on 2 cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: install ## ruff, mypy --strict, import contracts, spelling
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-logo | tail -n 8
	@$(BIN)/mypy
	@$(BIN)/codespell

test-slow: install ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow --timeout 1800

test-crash: install ## the tests that kill processes at random moments
	@$(BIN)/python -m pytest -m crash --timeout 3600

test-gpu: install ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

format: install ## format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

docs: install ## renew docs/configuration.md from the descriptions in the code
	@$(BIN)/twotower config --describe > docs/configuration.md

lock: install ## renew uv.lock from pyproject.toml
	@env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv lock

clean: ## remove the environment and the demo's results
	@rm -rf .venv work
