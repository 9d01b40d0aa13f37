# `make demo` and `make test` do all their own set-up: Python >= 3.11 and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test check proof bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app,dev,llamacpp,teacher]'
	touch $@

demo: $(STAMP)  ## tune the bundled model on the bundled data, show the evidence, ask it something
	$(BIN)/retone run yoda
	$(BIN)/retone ask latest "I can't find my keys again."

test: $(STAMP)  ## unit, contract, parity and end-to-end tests
	$(BIN)/python -m pytest

check: $(STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.proof: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app,dev,llamacpp,teacher,proof]'
	touch $@

proof: $(VENV)/.proof  ## slow and real: whole recipes, kill tests; each writes a JSON under proof/results
	$(BIN)/python -m pytest proof --timeout=3600 $(PROOF)

bench: $(STAMP)  ## ratios against plain twins and peers; each writes a JSON under benchmarks/results
	$(BIN)/python -m pytest benchmarks --timeout=5400

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
