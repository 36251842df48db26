# `make demo` and `make test` each do everything on a fresh machine, and only what is missing on a used one.
PYTHON ?= python3
VENV   ?= .venv
SECONDS_EACH ?= 60
BIN    := $(VENV)/bin

.PHONY: demo test test-slow test-all fuzz bench lint format dist clean
.DELETE_ON_ERROR:

demo: $(VENV)/.update
	$(BIN)/muscle demo

test: $(VENV)/.dev
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadfile -m slow

test-all: $(VENV)/.dev
	$(BIN)/pytest -n 2

fuzz: $(VENV)/.fuzz
	$(BIN)/python fuzz/run.py --seconds $(SECONDS_EACH)

# QUICK=1: small sizes, to see that everything runs; ONLY=name: one script of benchmarks/.
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(addprefix --only ,$(ONLY))

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy experiments docs benchmarks

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The sdist, and the wheel built from it; tests/test_packaging.py installs them.
dist: $(VENV)/.dev
	rm -rf dist
	PIP_CONSTRAINT='$(CURDIR)/constraints.txt' $(BIN)/python -m build

# A stamp per extra (dev includes update): installed once, again only when the pins or the package's metadata change.
$(VENV)/.update $(VENV)/.dev $(VENV)/.fuzz $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@ $(if $(filter %.dev,$@),$(VENV)/.update)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "muscle needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
