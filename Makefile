# make help lists the targets. VENV: the environment they use, made where there is none.
VENV ?= venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help venv test coverage lint format docs demo lowest ci

help:           ## list the targets
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

venv: | $(BIN)/ruff ## an environment with all that the targets need
$(BIN)/ruff:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[dev]"

test: venv      ## the everyday tests
	$(BIN)/python -m pytest

coverage: venv  ## the everyday tests, and which lines and branches they reach (htmlcov/index.html)
	$(BIN)/python -m pytest --cov --cov-report=html --cov-report=term:skip-covered

lint: venv      ## format, lint, types, import layers, size of the package
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/house.py

format: venv    ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: venv      ## the documentation, in site/
	$(BIN)/mkdocs build --strict

demo: venv      ## the demo, in demo/
	$(BIN)/bidsapp-recon demo demo

lowest:         ## the tests with the lowest allowed versions of the dependencies
	.ci/lowest

ci:             ## everything that a change has to pass
	.ci/run
