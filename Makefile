# `make train` and `make test` need nothing but Python 3.11 to 3.13, make and the network for packages.
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
JOBS ?= 2
FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test test-all lint check format build clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo "options: PYTHON=python3.12, PIP_FLAGS='--quiet' (passed to pip), FLAGS='seed=1' (passed to fasthebb)"

install: .venv/installed  ## make .venv and install the project with all that its tests need

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "error: $(PYTHON) is not Python 3.11 to 3.13; name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

train: install  ## the main job: 30 and 150 labels of real digits, with and without a backward pass, in one table
	$(BIN)/fasthebb train -m experiment=mnist5k/hpca,mnist5k/random,mnist5k/scratch label_fraction=0.01,0.05 \
	  'seed=range(0,2)' $(FLAGS)

# The tests' three tiers, and what they aim at on two cores: `check` 90 seconds, `test` 10 minutes, `.ci/run` (test-all) 25
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test: install  ## the tests that need nothing but this machine, without the longest
	$(PYTEST) -m 'not marathon and not slurm and not browser'

test-all: install  ## every test, as .ci/run does
	$(PYTEST) -m ''

lint: install  ## ruff and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## that, and the fast tests
	$(PYTEST)

format: install  ## let ruff format and mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: install  ## wheel and source distribution, in dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean:  ## remove .venv and what tools left behind; runs/ stays
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
