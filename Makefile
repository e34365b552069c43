# `make demo` and `make test` work from a fresh clone: the first call sets up .venv, later ones reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# Tests and notebooks run in two processes of one thread each.
JOBS ?= 2

# The stamp names what the environment was made from: dependencies, pins, and where it stands
# (a virtual environment cannot be moved).
STAMP := $(VENV)/.stamp-$(firstword $(shell { cat pyproject.toml constraints.txt; pwd; } | cksum))
CHECKED_NOTEBOOKS := out/notebooks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint format notebook check-notebooks results results-short bench clean

help:
	@echo "make demo      solve and show one small design (sets up .venv on the first call)"
	@echo "make test      lint, layers, types, tests and notebooks"
	@echo "make lint      lint, layers and types only"
	@echo "make format    let ruff format the code and fix what it can"
	@echo "make notebook  bring each .ipynb up to its .py and execute it"
	@echo "make results   make the published results again"
	@echo "make results-short  the same in a few minutes, fewer methods and rounds"
	@echo "make bench     run the benchmarks"
	@echo "make setup     set up .venv only (PYTHON=python3.12 chooses the interpreter)"
	@echo "make clean     remove caches and build outputs (.venv stays)"

setup: $(STAMP)

$(STAMP):
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	    echo "error: '$(PYTHON)' not found; name a Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: jointopt needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	         "name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (once)"
	@if [ "$$(cat $(VENV)/.place 2>/dev/null)" != "$$(pwd)" ]; then rm -rf $(VENV); fi
	@rm -f $(VENV)/.stamp-*
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	    echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@pwd > $(VENV)/.place
	@$(PY) -m pip install --disable-pip-version-check --no-input --progress-bar off \
	    -c constraints.txt -e '.[dev,diffusion,ipopt,minilm,moo,pruning,scip,sionna]' >$(VENV)/pip.log 2>&1 || { \
	    tail -n 20 $(VENV)/pip.log >&2; \
	    echo "error: installing into $(VENV) failed (all of it: $(VENV)/pip.log); 'make setup' tries again" >&2; \
	    exit 1; }
	@touch $@

demo: $(STAMP)
	@$(BIN)/jointopt demo

test: lint check-notebooks
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --nbmake tests $(CHECKED_NOTEBOOKS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Fresh .ipynb files, made from the .py halves, for the test run to execute: the tree stays untouched.
check-notebooks: $(STAMP)
	@rm -rf $(CHECKED_NOTEBOOKS)
	@mkdir -p $(CHECKED_NOTEBOOKS)
	@for source in notebooks/*.py; do \
	    test -e "$$source" || continue; \
	    $(BIN)/jupytext --quiet --to ipynb --output "$(CHECKED_NOTEBOOKS)/$$(basename "$$source" .py).ipynb" "$$source" || exit 1; \
	done

define EXECUTE
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": "notebooks"}}).execute()
nbformat.write(notebook, sys.argv[1])
endef
export EXECUTE

# The .py half is the source; --update keeps the outputs of unchanged cells until they are run again.
notebook: $(STAMP)
	@for source in notebooks/*.py; do \
	    test -e "$$source" || continue; \
	    echo "$$source"; \
	    $(BIN)/jupytext --quiet --to ipynb --update "$$source" || exit 1; \
	    OMP_NUM_THREADS=1 $(PY) -c "$$EXECUTE" "$${source%.py}.ipynb" || exit 1; \
	done

results: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) benchmarks/results.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/results.py --design feel --rounds 150
	OMP_NUM_THREADS=1 $(PY) benchmarks/results.py --design feel --data digits --sizes 4 40 --batch 0 --rounds 150 --seeds 5
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_coinference.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_feddpq.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_aerial.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_relatives.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_designs.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_designs.py --data digits --batch 0

results-short: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) benchmarks/results.py --short --out out/results
	OMP_NUM_THREADS=1 $(PY) benchmarks/results.py --short --design feel --seeds 1 --out out/results
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_feddpq.py --short --out out/results
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_aerial.py --short --out out/results
	OMP_NUM_THREADS=1 $(PY) benchmarks/results_designs.py --short --seeds 1 --out out/results

bench: $(STAMP)
	@for script in benchmarks/bench_*.py; do \
	    test -e "$$script" || { echo "error: no benchmarks/bench_*.py" >&2; exit 1; }; \
	    echo "$$script"; \
	    $(PY) "$$script" || exit 1; \
	done

clean:
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -print | xargs rm -rf
