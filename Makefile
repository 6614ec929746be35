# `make run`: from images to a registered model.  `make test`: proves it.  `make help` lists all.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRITON := 3.7.1
# The extras in requirements.lock, and what builds the project.
LOCKED := all dev
BACKEND := hatchling
TPU := torchax==0.0.14.dev20260814 jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 opt_einsum==3.4.0
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# Nothing calls home. (DVC's own switches are in .dvc/config.)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export GX_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := true

.PHONY: help install run test test-long lint images ui clean lock lock-all

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(VENV)/installed ## set up .venv from requirements.lock; does nothing when it is up to date

# Three steps, in this order (docs/decisions/0002): torch with its own dependencies, the rest of the
# lock without resolving anything, the project alone and editable.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say `make PYTHON=python3.11 run`")'
	@echo "Setting up $(VENV) (once; some minutes, 1.5 GB with the CPU build of torch) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(PIP) --no-deps --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@# The project had a script of this name once; with its old version pip removes Kubeflow's.
	@test -e $(BIN)/kfp || $(PIP) --no-deps --force-reinstall "$$(grep '^kfp==' requirements.lock)"
	@touch $@

# CUDA builds of torch bring Triton, the CPU build does not; with it the tests run the GPU kernels in
# Triton's interpreter and compile them, without a GPU (docs/decisions/0007).
$(VENV)/triton: $(VENV)/installed
	@test "$$(uname -s)" != Linux || $(BIN)/python -c 'import triton' 2>/dev/null \
	  || $(PIP) --no-deps --retries 1 triton==$(TRITON) \
	  || { echo "Triton $(TRITON) could not be fetched: the tests of the GPU kernels will be skipped."; exit 0; } \
	  && touch $@

# What a TPU needs, with XLA's CPU backend in its place (docs/decisions/0017).
$(VENV)/tpu: $(VENV)/installed
	@$(BIN)/python -c 'import torchax' 2>/dev/null \
	  || $(PIP) --no-deps --retries 1 $(TPU) \
	  || { echo "torchax could not be fetched: the tests of the TPU step will be skipped."; exit 0; } \
	  && touch $@

run: install ## from images to a registered model and artifacts/report/index.html
	@$(BIN)/bigtransfer run

test: $(VENV)/triton $(VENV)/tpu ## all tests, offline (some minutes)
	@$(BIN)/python -m pytest

test-long: $(VENV)/installed ## what takes too long for `make test`, and kills at ten times as many moments
	@BIGTRANSFER_TEST_TIMES=10 $(BIN)/python -m pytest -m long tests && \
	  BIGTRANSFER_TEST_TIMES=10 $(BIN)/python -m pytest tests/integration/track -k at_once

lint: install ## format, lint, types, import layers, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

images: install ## the container images that `kfp run submit` names, by Docker or Podman
	@$(BIN)/bigtransfer images

ui: install ## MLflow in the browser: runs, curves, registered models
	@$(BIN)/bigtransfer ui

clean: ## remove everything that `make run` made, not .venv and not your own data
	rm -rf artifacts .work mlflow.db mlruns data/upstream data/digits data/alphabets

# What is pinned stays, but for what is named: `make lock UPGRADE="kfp kfp-kubernetes"`. tpu is not in
# the lock; CUDA's packages are not either (docs/decisions/0002). The build backend, resolved with the
# rest, stands at the end: `make install` builds the project with it.
lock: ## pyproject.toml into requirements.lock, nothing renewed but UPGRADE="NAME …" (network, uv)
	@cp requirements.lock requirements.lock.all
	echo $(BACKEND) | uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	  $(addprefix --extra ,$(LOCKED)) $(addprefix --upgrade-package ,$(UPGRADE)) $(RENEW) \
	  --output-file requirements.lock.all pyproject.toml -
	@grep -vE '^(nvidia-|cuda-|triton|$(BACKEND)=|trove-classifiers=)' requirements.lock.all \
	  | LC_ALL=C sort > requirements.lock.new
	@grep -E '^($(BACKEND)|trove-classifiers)=' requirements.lock.all >> requirements.lock.new
	@rm requirements.lock.all
	mv requirements.lock.new requirements.lock

# What MLServer wants beside the rest: all that both name is pinned as in requirements.lock.
SERVED := $(shell sed -n '/^serve = \[/,/\]/p' pyproject.toml | grep -o '"[a-z0-9.-]*"' | tr -d '"' | tr . -)
serve-lock: ## the image `serve` into components/serve.lock (network, uv)
	grep -E "^($$(echo $(SERVED) | tr ' ' '|'))==" requirements.lock > serve.constraints
	echo $(SERVED) | tr ' ' '\n' | uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	  --constraint serve.constraints --output-file serve.lock.new -
	@grep -vE '^(nvidia-|cuda-|triton)' serve.lock.new | LC_ALL=C sort > components/serve.lock
	@rm serve.lock.new serve.constraints

lock-all: RENEW := --upgrade
lock-all: lock ## the same, with everything renewed
