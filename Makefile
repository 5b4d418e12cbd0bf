# `make help` lists the targets. VENV=path uses an existing environment as it is.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

# Our own environment gets the exact tested versions; a given one only what it lacks.
PINS := $(if $(filter file default,$(origin VENV)),-c constraints.txt)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) --editable

# A process a core; what is in one file stays together, since it may share a run.
PARALLEL := -n auto --dist loadfile

.PHONY: help quickstart test test-all lint format bench docs results results-cifar clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

quickstart: $(VENV)/.lit_prune ## install, then prune and train one network
	$(BIN)/python train.py --config configs/quickstart.yaml

test: $(VENV)/.lit_prune-test ## run all tests but the slow ones
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/.lit_prune-test ## run all tests
	$(BIN)/python -m pytest $(PARALLEL) -m ""

lint: $(VENV)/.lit_prune-test ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lit_prune-test ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.lit_prune-test ## measure speed, as ratios in one process
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.mask_manager
	$(BIN)/python -m benchmarks.levels
	$(BIN)/python -m benchmarks.monitor
	$(BIN)/python -m benchmarks.synflow
	$(BIN)/python -m benchmarks.criteria
	$(BIN)/python -m benchmarks.connectivity
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.report

DATA ?= data
results: $(VENV)/.lit_prune-test ## run what docs/results.md shows and has not been run; DATA=DIR holds MNIST/raw
	for sweep in mnist_dense mnist_lenet300100 mnist_threshold mnist_controls; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m lit_prune sweep configs/sweeps/$$sweep.yaml \
			--data.root $(DATA) || exit 1; \
	done
	$(BIN)/python docs/make_results.py

CURVE_OF = $(BIN)/python -m lit_prune curve --config configs/cifar10
ON_CIFAR = --data ImageFolder --data.root $(DATA) --data.batch_size 32 --compressions 10 31.6 100 316 1000 --seeds 3
results-cifar: $(VENV)/.lit_prune-test ## the same of CIFAR-10; DATA=DIR holds its images, train/CLASS and test/CLASS
	OMP_NUM_THREADS=1 $(BIN)/python -m lit_prune sweep configs/sweeps/cifar10_resnet20.yaml \
		--data.root $(DATA)
	for net in resnet20 vgg16; do \
		$(CURVE_OF)_$$net.yaml $(ON_CIFAR) --out curves/$${net}_quotas \
			--criteria Random Magnitude SNIP --quotas Uniform UniformPlus ERK ERKPlus IGQ || exit 1; \
		$(CURVE_OF)_$$net.yaml $(ON_CIFAR) --out curves/$${net}_criteria \
			--criteria LAMP Taylor Wanda GraSP SynFlow PHEW NPB --quotas || exit 1; \
	done
	$(CURVE_OF)_resnet20.yaml $(ON_CIFAR) --out curves/resnet20_rest \
		--criteria FORCE NPBSynFlow --quotas
	$(CURVE_OF)_vgg16.yaml $(ON_CIFAR) --out curves/floor_vgg16 \
		--criteria Magnitude --quotas --pruning.floor 0.005%
	$(BIN)/python docs/make_results.py

docs: $(VENV)/.lit_prune-docs ## write the pages of docs/ and the reference to build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "look at build/docs/index.html"

clean: ## remove caches; runs and environments stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lit_prune needs Python >= 3.11; name one by PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lit_prune: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); PyTorch is large, so this takes a while the first time"
	$(INSTALL) .
	@touch $@

$(VENV)/.lit_prune-test: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); PyTorch is large, so this takes a while the first time"
	$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.lit_prune

$(VENV)/.lit_prune-docs: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); PyTorch is large, so this takes a while the first time"
	$(INSTALL) '.[docs]'
	@touch $@ $(VENV)/.lit_prune
