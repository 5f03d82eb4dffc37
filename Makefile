# make setup | demo | test | test-slow | test-gpu | lint | clean; demo and test set up first
PYTHON3 ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo test test-slow test-gpu lint clean
setup: .venv/.installed

# torch and the build tools come first: deepspeed reads torch while it is built, and builds no operator here.
.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vmreid needs Python 3.11 or newer: make PYTHON3=python3.11")'
	$(PYTHON3) -m venv .venv
	$(PIP) setuptools wheel numpy torch
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

demo: setup
	./demo.sh

test: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python -m pytest -m 'not slow and not gpu'

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

lint: setup
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info runs
