# The two commands are `make demo` and `make test`. Both do all of their set-up.
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One thread per rank: two threads on two cores were 25 times slower in one measurement.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

TRAINING = $$($(PYTHON) tools/environment.py training)
# Made, or found in a quarter of a second; `nemo-gdpo generate` looks for it in .venv/generation.
GENERATION = @$(PYTHON) tools/environment.py generation >/dev/null
# import-linter has no `python -m` form, and its script lies beside another interpreter.
LINT_IMPORTS = from importlinter.cli import lint_imports_command as main; main()

.PHONY: help python python-generation python-generation-gpu demo experiment test lint format types check clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

python: ## print the path of the training environment's Python, making it when it is missing
	@$(PYTHON) tools/environment.py training

python-generation: ## print the path of the Python that has vLLM and Ray, making it when it is missing
	@$(PYTHON) tools/environment.py generation

python-generation-gpu: ## the same for NVIDIA GPUs
	@$(PYTHON) tools/environment.py generation-gpu

demo: ## convert, train with GDPO on a 2-rank mesh, export, sample, compare (12 minutes once installed)
	$(GENERATION)
	@"$(TRAINING)" -m examples.film_reviews.demo

HOURS ?= 2
SEEDS ?= 3
experiment: ## compare the objectives by quality and diversity (HOURS=2 SEEDS=3; resumes where it was stopped)
	$(GENERATION)
	@"$(TRAINING)" -m examples.film_reviews.experiment --hours $(HOURS) --seeds $(SEEDS)

test: ## all tests
	$(GENERATION)
	@"$(TRAINING)" -m pytest

lint: ## what pre-commit and CI check besides the tests
	@py="$(TRAINING)"; "$$py" -m ruff check . && "$$py" -m ruff format --check . \
	  && "$$py" -m mypy nemo_gdpo examples && "$$py" -c "$(LINT_IMPORTS)" --no-logo

format: ## rewrite the code in the project's format
	@py="$(TRAINING)"; "$$py" -m ruff check --fix . ; "$$py" -m ruff format .

check: lint test ## everything that guards main

clean: ## remove runs and the clone's own environment (the shared cache stays)
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
