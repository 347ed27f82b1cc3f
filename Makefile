# make demo   set up .venv, then let the shipped model write, coloured by expert
# make test   set up .venv, then ruff, mypy (strict on src/) and the tests
# make test-gpu   the tests that a CUDA card has, with the python that has its torch: make test-gpu GPU_PYTHON=python3
# make test-full   the same with long counts       make bench   the benchmarks, beside their peers
# PYTHON=... chooses the interpreter (3.11 or later); a torch that it has is used. pip's own configuration is respected.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then command -v $$p; break; fi; done)
BIN := .venv/bin

ifndef COTERIE_DATA
ifneq ($(wildcard ../shared/data/.),)
export COTERIE_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: demo test test-gpu test-full bench run-environment dev-environment python
.DEFAULT_GOAL := demo

demo: run-environment
	@$(BIN)/coterie generate "Il était une fois" --max-tokens 100 --temperature 0.7 --seed 5
	@echo
	@$(BIN)/coterie generate "Elle ouvrit la porte et" --max-tokens 40 --temperature 0.7 --seed 3 --routing
	@echo
	@echo "That was the model that ships; the second time with each token in the colour of its first expert. Next:"
	@echo "    source .venv/bin/activate"
	@echo "    coterie inspect demo                              what this model is"
	@echo "    coterie generate \"def fibonacci(n):\"              your own prompt"
	@echo "    coterie generate -m YOUR_MIXTRAL_FOLDER \"...\"     your own model"
	@echo "    coterie --help                                    the rest"

test: dev-environment
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pytest -q

GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

test-gpu:
	@PYTHONPATH=src "$(GPU_PYTHON)" -m pytest -q -p no:cacheprovider tests/kernels/triton tests/gpu

test-full: export COTERIE_FULL := 1
test-full: test

bench: dev-environment
	@for script in $$(grep -l '^def main(argv' benchmarks/*.py); do \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

run-environment: python
	@"$(PYTHON)" .ci/environment.py run

dev-environment: python
	@"$(PYTHON)" .ci/environment.py dev

python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later was found; install one, or say where it is with make PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is not a Python 3.11 or later" >&2; exit 2; }
