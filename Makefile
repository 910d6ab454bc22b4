# Each target does its own set-up from a bare checkout with python3 (3.11 or newer), make and git.
#
#   PYTHON=python3.12     the Python to make the virtual environment with
#   NO_VENV=1             use PYTHON as it is, installing nothing: graphkit and its tools are there
#   VENV=.venv            where the virtual environment goes
#   JOBS=2                test processes of `make test`
#   GPU_JOBS=6            and of `make test-gpu`, each with a context of its own on the device

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
GPU_JOBS ?= 6
PROMPT ?= def$(space)
TOKENS ?= 64

empty :=
space := $(empty) $(empty)

# A prompt goes to the program as it was given, past make and the shell.
ifeq ($(origin PROMPT),command line)
override PROMPT := $(value PROMPT)
endif
export PROMPT

ifdef NO_VENV
PY := $(PYTHON)
READY_FOR = installed
else
PY := $(VENV)/bin/python
READY_FOR = $(VENV)/ready-$(1)
endif

# What each kind of work needs beside the package itself; pyproject.toml says what that is.
EXTRAS_use :=
EXTRAS_dev := test,dev,metrics,hf
EXTRAS_bench := bench

# Prints the extra for the installed driver, or nothing: CuPy is of no use without one.
define DRIVER_EXTRA
import ctypes, sys
try:
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
except OSError:
    sys.exit()
major = version.value // 1000
if major >= 12:
    print("cu12" if major == 12 else "cu13")
elif major:
    print(f"The NVIDIA driver is of CUDA {major}; graphkit needs 12 or newer.", file=sys.stderr)
endef
export DRIVER_EXTRA

# Says what is wrong with PYTHON, as the first command of a recipe.
define CHECK_PYTHON
@command -v "$(PYTHON)" >/dev/null || { \
    echo "PYTHON: expected a Python that runs, came '$(PYTHON)', which is not found" >&2; exit 1; }
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
    echo "graphkit needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint types bench docs installed clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(call READY_FOR,use) ## write text with the bundled Llama: on the GPU, or on the simulator
	@$(PY) -P -m graphkit.cli generate --prompt "$$PROMPT" --tokens "$(TOKENS)"

test: $(call READY_FOR,dev) ## the whole suite without a GPU, on the simulator, with coverage
	$(PY) -P -m pytest --runtime=sim -m "not gpu" -n $(JOBS) --cov --cov-fail-under=90 --evidence=check

test-gpu: $(call READY_FOR,dev) ## the same suite on the device, and what only hardware shows
	GRAPHKIT_REQUIRE_GPU=1 $(PY) -P -m pytest --runtime=cuda -m "not alone" -n $(GPU_JOBS) --evidence=part
	GRAPHKIT_REQUIRE_GPU=1 $(PY) -P -m pytest --runtime=cuda -m alone --evidence=write

lint: $(call READY_FOR,dev) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(call READY_FOR,dev) ## mypy, strict
	$(PY) -m mypy

bench: $(call READY_FOR,bench) ## every benchmark, on the device; results go to bench/results
	@$(PY) -P -m graphkit.cli bench all

docs: $(call READY_FOR,use) ## write the generated pages of docs/ anew
	$(PY) -P docs/generate.py

clean: ## remove the virtual environment and what tools left behind
	rm -rf "$(VENV)" build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(CHECK_PYTHON)
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it is in the package python3-venv" >&2; exit 1; }

# pip runs once, and again when pyproject.toml has changed.
$(VENV)/ready-%: pyproject.toml | $(VENV)/bin/python
	@extras=$$($(PY) -c "$$DRIVER_EXTRA") && \
	    extras=$$(echo "$$extras,$(EXTRAS_$*)" | sed 's/^,//; s/,$$//; s/..*/[&]/') && \
	    echo "installing graphkit$$extras into $(VENV)" && \
	    $(PY) -m pip install --quiet --disable-pip-version-check --editable ".$$extras"
	@touch "$@"

installed:
	$(CHECK_PYTHON)
	@$(PY) -P -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("graphkit") is None)' || { \
	    echo "NO_VENV=1 installs nothing, and '$(PY)' has no graphkit: $(PY) -m pip install --editable ." >&2; exit 1; }
