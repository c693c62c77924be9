# Needs Python 3.11 or newer, make and git; everything else goes into .venv, once.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
WORKERS ?= 2
PYTEST  := $(BIN)/pytest -q -n $(WORKERS) --dist worksteal

# One cache of compiled kernels for all workers and runs, outside the source folders.
export NUMBA_CACHE_DIR ?= $(CURDIR)/.cache/numba
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test proof bench lint format types imports wheel clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

$(STAMP): pyproject.toml constraints.txt scripts/make_venv.sh
	@bash scripts/make_venv.sh $(VENV)
	@touch $@

demo: $(STAMP) ## install, then run the Composition-of-Experts study into results/coe_scaling
	$(BIN)/opbyte sweep sweeps/studies/coe_scaling.yaml --out results/coe_scaling

test: $(STAMP) ## the whole suite, without proofs and benchmarks
	$(PYTEST)

proof: $(STAMP) ## the slow proofs: kills, large studies, full reference files
	$(PYTEST) -m proof

bench: $(STAMP) ## the benchmarks, one at a time
	$(BIN)/pytest -q -m benchmark --benchmark-enable --benchmark-only

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

format: $(STAMP) ## rewrite the sources as ruff formats them
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

types: $(STAMP) ## mypy, strict, on the package
	$(BIN)/mypy

imports: $(STAMP) ## the import contract: down only
	$(BIN)/lint-imports

wheel: $(STAMP) ## build the wheel, install it elsewhere, use it, compare its files with the checkout
	$(BIN)/python scripts/check_wheel.py

clean: ## remove the environment, caches and builds; results/ stays
	rm -rf $(VENV) .cache .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	rm -rf .benchmarks build dist opbyte.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
