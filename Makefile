# `make demo` shows the system at work, `make test` checks it. The scripts need no Makefile: see README.md.
PYTHON ?= python3
# For the very versions that were tested, CUDA's libraries included: make env REQUIREMENTS=requirements.lock
REQUIREMENTS := requirements.txt requirements-dev.txt
BIN := .venv/bin
CONFIG := configurations/DEMO.conf
DEVICE := cpu

.PHONY: env demo test test-slow lint bench gpu

env: .venv/complete

.venv/complete: $(REQUIREMENTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(REQUIREMENTS:%=-r %)
	touch $@

# Trains the strong baseline and the network with large kernels. Called again, it goes on where it stopped.
demo: env
	$(BIN)/python PrepareData.py --config $(CONFIG)
	$(BIN)/python create_dtw.py --config $(CONFIG)
	$(BIN)/python run.py --config $(CONFIG) --recipe stid_demo residual_demo --seed 1
	$(BIN)/python erf_conv.py --run experiments/DEMO/residual_demo-seed1
	$(BIN)/python compare.py --runs experiments/DEMO/stid_demo-seed1 experiments/DEMO/residual_demo-seed1 \
		--output experiments/DEMO/comparison

test: env
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --cov=lib --cov=model --cov-report=term

test-slow: env
	$(BIN)/python -m pytest -m slow

lint: env
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Speed and memory against plain references: see benchmarks/README.md. `make bench DEVICE=cuda` where there is one.
bench: env
	$(BIN)/python -m benchmarks.run --device $(DEVICE)

# All that needs a GPU, in under nine minutes: tests, measurements, a training of full size. It installs nothing.
# `make gpu PYTHON=python3` takes that Python; `make gpu DEVICE=cpu QUICK=1` tries the command without a GPU.
gpu: DEVICE := cuda
gpu: PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(PYTHON) -m benchmarks.gpu --device $(DEVICE) $(if $(QUICK),--quick) $(if $(DATA),--data $(DATA)) \
		$(if $(OUTPUT),--output $(OUTPUT))
