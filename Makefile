# make setup: everything into .venv; make play: a world in the browser; make demo: the whole pipeline; make test: lint, types and the quick tests; make docs: the site.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# huggingface_hub 0.30 reads whether it is offline when it is imported: these tests have a process of their own.
LOWEST_HUB_TESTS := tests/common/test_model_hub.py tests/video/test_hf_urls.py
# One thread per test process: more would only compete for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
PARALLEL := -n $(JOBS) --dist loadfile

.PHONY: setup demo play docs finetune-example vidtok-tiny boxing-world lint test test-ci test-slow test-gpu test-lowest gpu-report test-all format package clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "error: $(PYTHON) was not found; install Python 3.11 or later, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) -V) is too old; 3.11 or later is needed, for example: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,train,decord,demo,docs,play,torchcodec]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gym-pusht
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

play: setup
	$(BIN)/world-model play boxing --open

# Pre-trains a small tokenizer on Atari play and fine-tunes it on natural clips: the gain in PSNR.
finetune-example: setup
	$(BIN)/python examples/finetune_frozen_tokenizer.py

# Trains the tokenizer that ships with the package, from random weights: some hours.
vidtok-tiny: setup
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[pretrain]'
	$(BIN)/python examples/train_vidtok_tiny.py

# A Boxing world from nothing but the game, with its measures: many hours.
boxing-world: setup
	$(BIN)/python examples/train_boxing_world.py

# The documentation site, into site/. A broken link, or a name that is not found, is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

test: lint
	$(PYTEST) $(PARALLEL) -m "not slow and not gpu"

# The slow tests of continuous integration: without those that are marked long, too.
test-ci: setup
	$(PYTEST) $(PARALLEL) -m "slow and not long and not gpu"

test-slow: setup
	$(PYTEST) $(PARALLEL) -m "slow and not gpu"

test-gpu: setup
	$(PYTEST) -m gpu

# On a machine with CUDA, in at most 10 minutes: the GPU tests, then its speeds, as a table and in runs/benchmarks/gpu.json.
gpu-report: setup
	timeout 300 $(PYTEST) -m gpu
	timeout 300 $(BIN)/python benchmarks/gpu.py

# The quick tests with the oldest admitted versions, torch's too, in an environment of its own; without a GPU with
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, which leaves out CUDA.
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q -c constraints-lowest.txt torch==2.9.0 -e '.[train,demo,play,lerobot,hdf5,s3,decord,wandb]' \
	  flask flask-cors hypothesis moto pytest pytest-xdist
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -o filterwarnings=default $(PARALLEL) -m "not gpu and not slow" \
	  $(LOWEST_HUB_TESTS:%=--ignore=%) tests
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -o filterwarnings=default -m "not gpu" $(LOWEST_HUB_TESTS)

test-all: lint
	$(PYTEST) $(PARALLEL)

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Builds sdist and wheel into dist/ and tests the wheel in fresh environments and an empty folder: some minutes.
package: setup
	rm -rf dist
	PACKAGE_DIST=dist $(PYTEST) -m slow tests/commands/test_package.py

clean:
	rm -rf $(VENV) $(LOWEST) *.egg-info build dist site .mypy_cache .import_linter_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
