# Everything runs in .venv, made from pinned versions; every target is safe to repeat. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CODE := src tests benchmarks docs/build recipe examples
export HF_HUB_OFFLINE := 1
SECONDS ?= 300
RESULTS ?= benchmarks/results
# Tests are the same every time: examples (tests/conftest.py), the order, the order of sets, and which worker runs what.
# A worker that is killed, where memory runs out, fails the run, and so does a test that hangs for fifteen minutes.
# Another order: make test SEED=1
export PYTHONHASHSEED := 0
LAST_RESORT := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
PYTEST := -m pytest $(LAST_RESORT) $(if $(SEED),--randomly-seed=$(SEED))
PARALLEL := -n 2 --max-worker-restart=0

.PHONY: help demo fuzz fuzz-http soak viewers transcripts test test-oldest test-vllm fmt lint type cuda-check bench-smoke bench-serve bench-serve-loads \
	architectures documents screenshots train wheel-test clean \
	gpu-test gpu-sanitize gpu-bench gpu-calibrate gpu-serve gpu-day

help: ## what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.demo ## calibrate the bundled model and decode with re-routing off and on
	$(BIN)/sere demo

test: .venv/.dev ## the whole test suite
	$(BIN)/python $(PYTEST) $(PARALLEL)
	$(MAKE) test-oldest
	$(MAKE) test-vllm
	@echo "make test: all passed, with the newest and the oldest supported Transformers and with vLLM"

# What touches Transformers, and does not start the command line in processes of its own.
OLDEST := tests/integrations/transformers tests/public_cases tests/checkpoints tests/texts tests/calibrate tests/cli/test_calibrate.py \
	tests/cli/test_generate.py tests/cli/test_table_and_model.py tests/test_structure.py
test-oldest: .venv-oldest/.ready ## with the oldest supported Transformers, what touches it, in an environment of its own
	.venv-oldest/bin/python $(PYTEST) $(PARALLEL) $(OLDEST)

test-vllm: .venv-vllm/.ready ## the tests with a real vLLM engine or lm-eval, in an environment of their own
	.venv-vllm/bin/python -m pytest $(LAST_RESORT) $(PARALLEL) --durations=30 -m vllm tests/integrations/vllm tests/engines tests/bench/vllm tests/benchmarks tests/eval/test_vllm_engines.py tests/eval/harness tests/calibrate/vllm tests/outlook
	.venv-vllm/bin/python -m pytest $(LAST_RESORT) -m lm_eval tests/eval/harness tests/cli/test_lm_eval.py

fuzz: .venv/.dev ## look for counterexamples to the property tests with fresh seeds; make fuzz SECONDS=300
	PYTHONHASHSEED=random $(BIN)/python -m pytest -q -rfE --tb=short -p tests.support.fuzz -m hypothesis \
		--fuzz-seconds=$(SECONDS) -o console_output_style=classic

fmt: .venv/.dev ## format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

lint: .venv/.dev ## check format and style
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

type: .venv/.dev ## check types, strictly
	$(BIN)/mypy

cuda-check: .venv/.dev ## compile the CUDA kernel and Triton's programs, where their compilers are; no GPU needed
	$(BIN)/python benchmarks/cuda_check.py
	$(BIN)/python benchmarks/triton_check.py

bench-smoke: .venv/.dev ## every benchmark once, on the smallest sizes; numbers mean nothing
	$(BIN)/python benchmarks/similarity.py --quick
	$(BIN)/python benchmarks/reroute.py --quick --out out/smoke.jsonl
	$(BIN)/sere bench --preset tiny --layers 2 --batch-size 2 4 --steps 4 --out out/smoke.jsonl

architectures: .venv/.dev ## every Mixture-of-Experts architecture built tiny and checked; writes docs/architectures.md
	PYTHONPATH=. $(BIN)/python benchmarks/architectures.py
	$(BIN)/python docs/build/documents.py

documents: .venv/.dev ## write the documents' tables and pictures from benchmarks/results
	$(BIN)/python docs/build/documents.py

# The defaults, fewer experts, and S=2 as the paper's preset has it, which in this form needs no engine of its own.
# Another PRESET, such as qwen1.5-moe-a2.7b or deepseek-v2-lite, is timed with four layers and fewer settings.
# Both targets continue after an interruption.
QWEN3 := qwen3-30b-a3b
PRESET ?= $(QWEN3)
BENCH_SERVE := .venv-vllm/bin/python -m sere bench serve --preset $(PRESET) --compile --threads 2 --vanilla \
	--out $(RESULTS)/$(if $(filter $(QWEN3),$(PRESET)),serve_engines,serve_presets).jsonl
FEW := sere:active_experts=8-8/16-15/32-28/64-50/128-80
OF_QWEN3 := --depths 4 8 --batch-size 1 8 16 32 64 128 --setting $(FEW) --setting sere:select_top_k=2,active_experts=0
OF_OTHERS := --layers 4 --batch-size 8 16 32 64 --setting sere:active_experts=0.25,min_gain=0.01
bench-serve: .venv-vllm/.ready ## vLLM on this CPU, at Qwen3-30B-A3B's layer shape or that of PRESET: decoding, against vanilla
	$(BENCH_SERVE) --prompt 8 --steps 12 --rounds 2 --setting sere $(if $(filter $(QWEN3),$(PRESET)),$(OF_QWEN3),$(OF_OTHERS))

bench-serve-loads: .venv-vllm/.ready ## the same: first tokens, prompts and a mixture
	$(BENCH_SERVE) --layers 4 --rounds 2 --load ttft-32 ttft-2k ttft-8k prefill mixed

screenshots: .venv/.dev .venv-vllm/.ready ## pictures in docs/screenshots: the tests draw them, in Chromium
	rm -rf out/screenshots
	$(BIN)/python -m pytest -q tests/report/test_first_screen.py
	.venv-vllm/bin/python -m pytest -q tests/integrations/vllm/in_engine/test_live_page.py
	$(BIN)/python docs/build/screenshots.py

train: .venv/.dev ## train the bundled model again from nothing (about an hour on two idle cores)
	$(BIN)/python -m recipe.train --out runs/train

# The machine with the GPU may have no network: these run in the environment that holds its PyTorch.
GPU_PYTHON ?= python3
GPU := PYTHONPATH=src:.:$(PYTHONPATH) $(GPU_PYTHON)

gpu-test: ## on a GPU: the common suite, graphs, compilation, fuzzing; the kernel first, then Triton with fewer examples
	$(GPU) -m pytest tests/reroute --ignore tests/reroute/test_gpu_sanitize.py -m gpu -k "not triton" -q -W default
	MOST_EXAMPLES=10 $(GPU) -m pytest tests/reroute -m gpu -k triton -q -W default

gpu-sanitize: ## on a GPU: compute-sanitizer's memcheck, racecheck and synccheck on the kernel
	$(GPU) -m pytest tests/reroute/test_gpu_sanitize.py -m gpu -q -W default

gpu-bench: ## on a GPU: one launch against tensor operations and the published form
	$(GPU) benchmarks/gpu_reroute.py --threads --out $(RESULTS)/gpu_reroute.jsonl
	$(GPU) benchmarks/gpu_reroute.py --out $(RESULTS)/gpu_reroute.jsonl

gpu-day: ## on a GPU: the first fifteen minutes, in pieces; REHEARSE=1 tries every piece on a CPU
	$(GPU) benchmarks/gpu_day.py --results $(if $(filter benchmarks/results,$(RESULTS)),out,$(RESULTS)) $(if $(REHEARSE),--rehearse)

gpu-calibrate: ## on a GPU: similarity accumulators against the CPU's results, and their time
	$(GPU) benchmarks/gpu_similarity.py --out $(RESULTS)/gpu_similarity.jsonl

fuzz-http: .venv-vllm/.ready ## 10,000 generated requests to each route of a real vllm serve; none may fail or stop the engine; make fuzz-http REQUESTS=2000 CONTROL=5
	PYTHONPATH=src:. .venv-vllm/bin/python benchmarks/fuzz_http.py $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(CONTROL),--control $(CONTROL)) --out $(RESULTS)/fuzz_http.jsonl

transcripts: .venv-vllm/.ready ## run the commands on two small models and write what a terminal shows to docs/transcripts.md
	PYTHONPATH=src:. .venv-vllm/bin/python docs/build/transcripts.py $(if $(FOLDER),--folder $(FOLDER))

viewers: .venv-vllm/.ready ## tokens per second of a real vllm serve with 0, 1 and 20 viewers of its live page
	PYTHONPATH=src:. .venv-vllm/bin/python benchmarks/viewers.py --out $(RESULTS)/viewers.jsonl

SOAK_SECONDS ?= 3600
soak: .venv-vllm/.ready ## a real vllm serve under everything that clients do, for SOAK_SECONDS
	PYTHONPATH=src:. .venv-vllm/bin/python benchmarks/soak_serve.py --seconds $(SOAK_SECONDS) --out $(RESULTS)/soak_serve.jsonl

gpu-serve: ## on a GPU: vLLM with Qwen3-30B-A3B's shape, re-routing off and on; see CONTRIBUTING.md
	$(GPU) benchmarks/gpu_serve.py --out $(RESULTS)/gpu_serve.jsonl

wheel-test: ## build the wheel and run against it, in a clean environment, what shows that nothing is missing in it
	PYTHON=$(PYTHON) sh tests/wheel.sh

clean: ## remove what the other targets made
	rm -rf .venv .venv-oldest .venv-vllm .venv-wheel build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -e '.[demo,data,dev]'
	@touch $@ .venv/.demo

# Exactly what the file names: it names all that is needed.
.venv-%/.ready: constraints-%.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r $<
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -e .
	@touch $@
