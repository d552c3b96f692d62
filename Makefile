# Everything here makes its own environment (.venv) on first use; nothing is installed elsewhere.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two training threads beside another job run several times slower when they spin while waiting.
export OMP_WAIT_POLICY ?= PASSIVE
# Keep freed memory instead of giving it back after every tensor (glibc): fewer page faults in training.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

.PHONY: help install demo test test-systems format lint types layers unit readme-test bench clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## Make the environment

$(STAMP): pyproject.toml constraints/ci.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints/ci.txt --editable '.[train,export,cpu,openvino,serve,geo,postgres,s3,dev]'
	touch $(STAMP)

demo: install  ## Generated scenes, two new classes from tags, gate, export, in a few minutes
	$(BIN)/cilseg demo demo

test: lint types layers unit readme-test  ## Format, lint, types, import layers, tests, README commands

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: install  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

unit: install
	$(BIN)/pytest -q -n 2 --ignore tests/test_readme.py --ignore tests/serve
	$(BIN)/pytest -q -n 2 tests/serve

readme-test: install
	$(BIN)/pytest -q tests/test_readme.py

test-systems: install  ## Tests against a real PostgreSQL, S3 server, Triton and headless Chromium (apt-get install postgresql chromium)
	$(BIN)/python -m pip install --quiet --constraint constraints/ci.txt --editable '.[train,export,cpu,openvino,serve,geo,postgres,s3,ray,dev]'
	$(BIN)/pytest -q -m systems

bench: install  ## One benchmark: make bench NAME=voc_animals_story ARGS='--data DIR --weights FILE'
	$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

clean:  ## Remove environment, demo and caches
	rm -rf $(VENV) demo runs build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
