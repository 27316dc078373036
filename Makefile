# `make` lists the targets. All of them use the environment in $(VENV), which `setup` makes.

SHELL := bash
VENV ?= .venv
PYTHON := $(VENV)/bin/python
JOBS ?= 2
DEMO_DIR ?= runs/demo
STAMP := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest lint format results docs package clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the environment, or bring it up to date with pyproject.toml

$(STAMP): pyproject.toml
	@set -euo pipefail; \
	if ! $(PYTHON) -m pip --version > /dev/null 2>&1; then \
	  base=; \
	  for python in python3.11 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	      base=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$$base" ]; then \
	    echo "make setup: needs Python 3.11 or newer; found neither python3.11 nor such a python3." >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$($$base --version)"; \
	  $$base -m venv $(VENV); \
	fi; \
	echo "Installing keras_mikd and what its tests and examples need (minutes, the first time):"; \
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(PYTHON) -m pip install --progress-bar off -e ".[dev]" \
	  | awk '/^Collecting / { printf " %s", $$2; fflush() } END { print "" }'; \
	touch $@; \
	echo "Done: source $(VENV)/bin/activate"

demo: setup ## Train a teacher on the digits, compare students, export the best (about 3 minutes)
	@set -euo pipefail; dir=$(DEMO_DIR); n=2; \
	while [ -e $$dir ]; do dir=$(DEMO_DIR)-$$n; n=$$((n + 1)); done; \
	echo "Writing to $$dir"; \
	$(PYTHON) examples/train_teacher.py --output_dir=$$dir; \
	$(PYTHON) examples/distill.py --output_dir=$$dir; \
	$(PYTHON) examples/export_student.py --student=$$dir/student.keras

# A file stays in one process, which shares what it compiles. Files go by name and not by their
# number of tests, since those that start processes have few tests and would all come last.
PYTEST = $(PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 10

test: setup ## Run the tests, but for those marked slow
	$(PYTEST)

test-all: setup ## Run all tests
	$(PYTEST) -m ""

# With the floors of pyproject.toml, and no extra. These files need none.
OLDEST ?= build/oldest
OLDEST_TESTS = $(patsubst %,tests/%_test.py,bounds feature_taps keras_internals keras_loss_adapter \
  peer_defects replicas save_teacher saved_before student_checkpoint vid_distiller weight_files)

test-oldest: setup ## Test the core with the oldest TensorFlow and Keras that are supported
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --progress-bar off --quiet $$($(PYTHON) tests/floors.py)
	PYTHONPATH=. $(OLDEST)/bin/python -m pytest $(OLDEST_TESTS)

lint: setup ## Check style, formatting and which room imports which
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache

format: setup ## Fix what lint can fix
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

results: setup ## Fill the pages of docs/results from their JSON, and draw the charts
	$(PYTHON) docs/make_results.py

docs: setup ## Build the site into build/docs; warnings are errors (its tutorials train: minutes)
	$(PYTHON) -m sphinx -W -n --keep-going -b html docs build/docs

package: setup ## Build sdist and wheel into dist, and test the wheel from another folder
	$(PYTHON) tests/check_package.py --output=dist

clean: ## Remove caches, builds and the demo's output; the environment stays
	rm -rf build dist .hypothesis .pytest_cache .ruff_cache $(DEMO_DIR)
	find benchmarks examples experiments keras_mikd tests -name __pycache__ -prune -exec rm -rf {} +
