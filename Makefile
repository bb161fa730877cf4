# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
PARALLEL ?= -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint types benchmark benchmark-speed clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.train  ## compare five methods on the built-in corpus (a few minutes)
	$(BIN)/python -m spectrain demo --out $(RUNS)/demo

test: $(VENV)/.test  ## run the tests
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: $(VENV)/.test  ## run the tests, the slow ones too
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/.dev  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## check types
	$(BIN)/mypy

benchmark: $(VENV)/.train  ## rerun the committed experiment (hours; continues where it was)
	$(BIN)/python benchmarks/pretraining.py stdlib

benchmark-speed: $(VENV)/.bench  ## time every method's training step, write benchmarks/results/speed.md
	$(BIN)/python benchmarks/speed.py

# Each of these installs pinned versions once, and again when the pins or the extras change.
$(VENV)/.train: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.test: $(VENV)/.train
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,test,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.train
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,bench]'
	@touch $@

clean:  ## remove the environment and all runs
	rm -rf $(VENV) $(RUNS)
