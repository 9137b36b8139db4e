# `make demo` and `make test` are all the set-up there is: each makes its own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1
# Whatever the machine says: a hundred processes of the tests would compile the same modules.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest test-quantized models check test-diffusers bench-gpu environment clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

environment: $(VENV)/.ready ## the tools and the package in .venv; the others make it when they need it

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: environment ## a picture from a prompt on two processes, beside the sequential one
	$(BIN)/asyncdiff generate "rocket" --components 2 --steps 50 --seed 0 --out out.png --compare

# Every process has one thread. Three are no faster on two cores: some start ranks of their own.
PARALLEL := -n 2 --dist worksteal

test: environment ## the tests (no GPU, no network, two cores)
	$(BIN)/python -m pytest $(PARALLEL) -m "not whole"

test-all: environment ## these and the whole matrices of denoisers and pipelines (an hour)
	$(BIN)/python -m pytest $(PARALLEL)

test-oldest: environment ## the tests on Python 3.10 with the oldest versions (torch: several GB, in .nox)
	$(BIN)/nox --session oldest -- $(PARALLEL)

# Beside the environment, not in it: with torchao installed diffusers imports it in every process, and warns.
test-quantized: environment ## the tests of quantized weights, with the libraries for these (60 MB, in build/)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/quantization \
		-c constraints.txt torchao bitsandbytes
	PYTHONPATH=build/quantization $(BIN)/python -m pytest $(PARALLEL) -k quantized \
		tests/weights/test_quantized.py tests/pipelines/test_execution.py

models: environment ## docs/models.md: which denoiser classes of the installed diffusers work (ten minutes)
	$(BIN)/asyncdiff models --markdown docs/models.md

check: environment ## style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What diffusers' tests import and ours do not. A part of them: ARGUMENTS="--only flux wan -k 'not lora'"
test-diffusers: environment ## diffusers' own pipeline tests with AsyncDiff attached; DIFFUSERS=<its checkout> (hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt parameterized requests-mock scipy
	DIFFUSERS="$(DIFFUSERS)" $(BIN)/python -m benchmarks.diffusers_tests $(ARGUMENTS)

# Nothing is installed: what is measured is this tree, by a Python that has torch for the GPU, and diffusers.
bench-gpu: ## real-sized denoisers on this machine's GPU, whole and in parts (ten minutes)
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu

clean: ## remove the environments
	rm -rf $(VENV) .nox
