# `make help` lists what there is. Every target sets up .venv first when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# So many processes share the tests; 0 runs them in pytest's own, as a debugger wants it.
WORKERS := 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# Without a GPU, torch comes from constraints/cpu.txt, so that no CUDA build is pulled.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints/cpu.txt)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all readers bench gpu lint clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## install into .venv

$(READY): pyproject.toml constraints/cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. Try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	touch $@

run: $(READY)  ## quantize the embedded model with SINQ, evaluate, record, print a table; ARGS='bits=3' for more
	$(BIN)/python run.py $(ARGS)

test: $(READY)  ## the tests, without the slow ones: about 8 minutes on two idle cores; WORKERS=4 for more, ARGS='-k frozen' for few
	$(PYTEST) $(ARGS)

test-all: $(READY)  ## all tests; some take minutes
	$(PYTEST) -m 'not readers' $(ARGS)

readers: $(READY)  ## exported files read by the programs they are for; pip install -e '.[readers]' has them, a missing one is a skip
	-$(BIN)/python -m experiments.engines
	$(BIN)/python -m pytest -m readers $(ARGS)

bench: $(READY)  ## time ours against others in turn, as ratios to peers and to the floor; ARGS='--suite linear --bits 4'
	$(BIN)/python -m experiments.bench $(ARGS)

gpu: $(READY)  ## check everything on a CUDA device in at most nine minutes, without a network; ARGS=--dry for tiny shapes on the CPU
	$(BIN)/python -m experiments.bench.gpu $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and tool caches; results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
