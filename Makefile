# Two commands from nothing but Python 3.11 or newer: `make demo` and `make test`.
# Everything is installed into .venv; a second run installs nothing.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-matrix lint check fix bench bench-quick bench-page bench-train bench-train-quick train-peers peers clean

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?=
CANDIDATES := python3 python python3.14 python3.13 python3.12 python3.11
# More workers than cores: a third of the time they wait, for leases, servers and processes.
PYTEST ?= -n 4 --dist worksteal

# pytest-xdist's workers must name the tests alike, and a set in a test's name would vary.
export PYTHONHASHSEED := 0
# Or each of the hundreds of interpreters that tests start compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# What reads and writes: without the kernel too.
ON_BOTH_PATHS := tests/indexing tests/engine tests/codecs tests/faults tests/records

# The kernel is built where a compiler is found; an install without it works the same.
KERNEL := setup.py $(wildcard tensorstash/engine/native/*.[ch])

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 make demo      choose the interpreter (3.11 or newer)"
	@echo "  make test PYTEST='-k append'     choose the tests"

demo: $(VENV)/.demo ## store real arrays, slice them, train from them: under a minute
	@$(BIN)/python examples/demo.py

test: $(VENV)/.test ## run the tests
	@$(BIN)/python -m pytest $(PYTEST)

test-long: $(VENV)/.test ## campaigns that take minutes: over every driver, every interrupt, more examples
	@HYPOTHESIS_PROFILE=campaign $(BIN)/python -m pytest -m 'long or examples' $(PYTEST)
	@echo "==> reading and writing once more, in Python alone"
	@TENSORSTASH_NATIVE=0 $(BIN)/python -m pytest $(ON_BOTH_PATHS) $(PYTEST)

test-matrix: $(VENV)/.uv ## a part of the tests: each Python, oldest and newest dependencies
	@$(BIN)/python .ci/matrix

lint: $(VENV)/.dev ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/mypy tests/typed_surface.py
	@$(BIN)/lint-imports

check: lint test ## lint, then every test: README and docs blocks, examples, wheel

fix: $(VENV)/.dev ## format and repair what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The newest zarr-python wants Python 3.12: an environment of its own.
NEWER := VENV=.venv-bench CANDIDATES="python3.13 python3.12 python3.14 python3"

bench: ## measure arrays against the peers (long); keeps the results in docs/
	@$(MAKE) --no-print-directory $(NEWER) peers
	@.venv-bench/bin/python -m benchmarks

bench-quick: ## the same, small: about two minutes; writes to bench-out/
	@$(MAKE) --no-print-directory $(NEWER) peers
	@.venv-bench/bin/python -m benchmarks --quick

peers: $(VENV)/.bench

bench-page: $(VENV)/.bench ## measure nothing: write docs/performance.md anew from what is kept
	@$(BIN)/python -m benchmarks page

# Some of its peers want an older NumPy: they get an environment of their own.
bench-train: ## measure training workloads against the peers (long); keeps the results in docs/
	@$(MAKE) --no-print-directory VENV=.venv-train train-peers
	@.venv-train/bin/python -m benchmarks train

bench-train-quick: ## the same, small: about two minutes; writes to bench-out/
	@$(MAKE) --no-print-directory VENV=.venv-train train-peers
	@.venv-train/bin/python -m benchmarks train --quick

train-peers: $(VENV)/.train-bench

clean: ## remove .venv, caches and what the demo wrote
	rm -rf $(VENV) .venv-train .venv-bench .matrix build dist demo-data bench-out *.egg-info
	rm -f tensorstash/engine/native/*.so
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, filled step by step: each stamp names what is installed in it.

$(VENV)/pyvenv.cfg:
	@found=""; \
	for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "$(if $(PYTHON),$(PYTHON) is no,found no python3 that is a) working Python 3.11 or newer;" \
	       "name one: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 1; \
	fi; \
	echo "==> creating $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "could not create $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; \
	}

$(VENV)/.demo: pyproject.toml constraints.txt $(KERNEL) $(VENV)/pyvenv.cfg
	@echo "==> installing what the demo needs into $(VENV) (the first time: minutes, torch is large)"
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(KERNEL) $(VENV)/pyvenv.cfg
	@echo "==> installing what the tests need into $(VENV) (the first time: minutes, torch is large)"
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.uv: $(VENV)/pyvenv.cfg
	@echo "==> installing uv, which makes the environments of the matrix, into $(VENV)"
	@$(PIP_INSTALL) 'uv>=0.9'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(KERNEL) $(VENV)/pyvenv.cfg
	@echo "==> installing what developers need into $(VENV) (the first time: minutes, torch is large)"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.test $@

$(VENV)/.bench: pyproject.toml constraints.txt $(KERNEL) $(VENV)/pyvenv.cfg
	@echo "==> installing the peers to measure against into $(VENV)"
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

$(VENV)/.train-bench: pyproject.toml constraints.txt $(KERNEL) $(VENV)/pyvenv.cfg
	@echo "==> installing the peers of the training workloads into $(VENV) (minutes)"
	@$(PIP_INSTALL) --editable '.[train-bench]'
	@touch $@
