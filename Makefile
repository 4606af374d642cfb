# The two commands are `make demo` and `make test`. Both do all of their set-up.
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One thread per rank: two threads on two cores were 25 times slower in one measurement.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
# The tests start hundreds of processes: without cached bytecode each compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

TRAINING = $$($(PYTHON) tools/environment.py training)
# Made, or found in a quarter of a second; `nemo-gdpo generate` looks for it in .venv/generation.
GENERATION = @$(PYTHON) tools/environment.py generation >/dev/null
# import-linter has no `python -m` form, and its script lies beside another interpreter.
LINT_IMPORTS = from importlinter.cli import lint_imports_command as main; main()

.PHONY: help python python-training-gpu python-training-ngc python-generation python-generation-gpu gpu-check bench bench-all demo experiment rounds test test-all test-fast lint lint-ruff \
  lint-format lint-types lint-imports lint-files lint-shell lint-image image-test label-test docs docs-serve docs-tables format check clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

python: ## print the path of the training environment's Python, making it when it is missing
	@$(PYTHON) tools/environment.py training

python-training-gpu: ## the same with CUDA and Transformer Engine, which is compiled (7 GB)
	@$(PYTHON) tools/environment.py training-gpu

python-training-ngc: ## the same inside NVIDIA's PyTorch image, whose torch, Transformer Engine and Apex stay
	@$(PYTHON) tools/environment.py training-ngc

python-generation: ## print the path of the Python that has vLLM and Ray, making it when it is missing
	@$(PYTHON) tools/environment.py generation

python-generation-gpu: ## the same for NVIDIA GPUs (9 GB)
	@$(PYTHON) tools/environment.py generation-gpu

GPU_PYTHON ?= $$($(PYTHON) tools/environment.py training-gpu)
MINUTES ?= 25
gpu-check: ## check this machine's GPUs in stages (MINUTES=25 GPU_PYTHON=python3; resumes where it was stopped)
	@"$(GPU_PYTHON)" -m nemo_gdpo doctor --gpu --minutes $(MINUTES)

WORKLOAD ?= cpu
ROUNDS ?= 3
BENCH ?= peers
BENCHES = heads start growth peers
MIXES = dialogues instructions summaries
VOCABULARIES = 32768 131072
bench: ## DPO training beside TRL's (WORKLOAD=cpu|gpu ROUNDS=3 MIX= VOCABULARY=; QUICK=1: tiny); BENCH=heads|start|growth the rest
	$(if $(filter $(BENCH),$(BENCHES)),,$(error BENCH=$(BENCH): one of $(BENCHES)))
	@$(BENCH_$(BENCH))

bench-all: ## every benchmark but the GPU's, one after the other, each in minutes (QUICK=1: tiny; again: goes on)
	@$(BENCH_heads) || test $$? = 75
	@$(BENCH_start) || test $$? = 75
	@$(BENCH_growth) || test $$? = 75
	@for mix in $(if $(QUICK),summaries,$(MIXES)); do for size in $(if $(QUICK),2000,$(VOCABULARIES)); do \
	  $(MAKE) --no-print-directory bench MIX=$$mix VOCABULARY=$$size GO_ON=1; done; done

BENCH_ENVIRONMENT = $$($(PYTHON) tools/environment.py bench)
BENCH_PYTHON = $(if $(filter gpu,$(WORKLOAD)),$(GPU_PYTHON),$(TRAINING))
BENCH_peers = "$(BENCH_PYTHON)" -m benchmarks.peers --workload $(if $(QUICK),quick --rounds 1,$(WORKLOAD) --rounds $(ROUNDS)) \
  $(if $(GO_ON),--go-on) $(if $(MIX),--mix $(MIX)) $(if $(VOCABULARY),--vocabulary $(VOCABULARY)) --trl-python "$(BENCH_ENVIRONMENT)"
BENCH_heads = "$(BENCH_ENVIRONMENT)" -m benchmarks.heads $(if $(QUICK),--quick)
BENCH_start = "$(TRAINING)" -m benchmarks.start $(if $(QUICK),--quick) --trl-python "$(BENCH_ENVIRONMENT)"
BENCH_growth = "$(TRAINING)" -m benchmarks.growth $(if $(QUICK),--quick)

demo: ## convert, train with GDPO on a 2-rank mesh, export, sample, compare (12 minutes once installed)
	$(GENERATION)
	@"$(TRAINING)" -m examples.film_reviews.demo

rounds: ## two rounds of a GFlowNet with a constraint, on SmolLM2-135M and film prompts (15 minutes on 2 idle cores)
	$(GENERATION)
	@"$(TRAINING)" -m examples.film_reviews.rounds

HOURS ?= 4
SEEDS ?= 5
PROFILE ?= $(if $(QUICK),quick,cpu)
EXPERIMENT_PYTHON = $(if $(filter gpu,$(PROFILE)),$(GPU_PYTHON),$(TRAINING))
experiment: ## which objective? (HOURS=4 SEEDS=5; goes on where it was stopped; QUICK=1: in minutes; PROFILE=gpu)
	@"$(EXPERIMENT_PYTHON)" -m examples.film_reviews.evidence --profile $(PROFILE) --hours $(HOURS) --seeds $(SEEDS)

test-fast: ## the tests that start no ranks, engines, browsers or Slurm (under 3 minutes on 2 cores)
	@"$(TRAINING)" -m pytest -m "not slow" -n auto

test: ## the tests, but for breadth that `make test-all` adds
	$(GENERATION)
	@"$(TRAINING)" -m pytest -n 2

test-all: ## every test, every night
	$(GENERATION)
	@NEMO_GDPO_TESTS=all "$(TRAINING)" -m pytest -n 2

lint: lint-ruff lint-format lint-types lint-imports lint-files lint-shell lint-image ## what pre-commit and CI check besides the tests

lint-ruff:
	@"$(TRAINING)" -m ruff check .

lint-format:
	@"$(TRAINING)" -m ruff format --check .

lint-types:
	@"$(TRAINING)" -m mypy nemo_gdpo examples

lint-imports:
	@"$(TRAINING)" -c "$(LINT_IMPORTS)" --no-logo

lint-files:
	@"$(TRAINING)" tools/check_files.py
	@"$(TRAINING)" tools/check_locks.py

lint-shell:
	@"$(TRAINING)" tools/check_scripts.py

lint-image:
	@"$$($(PYTHON) tools/environment.py hadolint)" tools/check_dockerfile.py

image-test: ## build the image for CPUs and run it, without a Docker engine (as root; needs podman, runc, debootstrap)
	@NEMO_GDPO_IMAGE_TEST=1 "$(TRAINING)" -m pytest tests/image

LABEL_TESTS = tests/system/test_label_studio.py tests/system/test_label_studio_training.py tests/labeling/test_sync.py
label-test: ## ask people through a real Label Studio and browser, train on what they say (RENEW=1 writes the kept answers and picture)
	@$(PYTHON) tools/environment.py label-studio >/dev/null
	@NEMO_GDPO_LABEL_TEST=$(if $(RENEW),renew,1) "$$($(PYTHON) tools/environment.py label)" -m pytest $(LABEL_TESTS)

docs: ## build the documentation into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 "$$($(PYTHON) tools/environment.py docs)" -m mkdocs build --strict

docs-serve: ## show the documentation on http://127.0.0.1:8000 and follow edits
	@NO_MKDOCS_2_WARNING=1 "$$($(PYTHON) tools/environment.py docs)" -m mkdocs serve --strict

docs-tables: ## write the pages of configuration keys and metrics from the code
	@"$(TRAINING)" tools/docs_tables.py

format: ## rewrite the code in the project's format
	@py="$(TRAINING)"; "$$py" -m ruff check --fix . ; "$$py" -m ruff format .

check: lint test ## everything that guards main

clean: ## remove runs and the clone's own environment (the shared cache stays)
	rm -rf .venv runs site .pytest_cache .mypy_cache .ruff_cache
