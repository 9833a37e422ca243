# `make demo` shows the system at work, `make test` checks it. The scripts need no Makefile: see README.md.
PYTHON ?= python3
# For the very versions that were tested, CUDA's libraries included: make env REQUIREMENTS=requirements.lock
REQUIREMENTS := requirements.txt requirements-dev.txt
BIN := .venv/bin
CONFIG := configurations/DEMO.conf
DEVICE := cpu

.PHONY: env demo test test-slow lint bench

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
	$(BIN)/python -m pytest --cov=lib --cov=model --cov-report=term

test-slow: env
	$(BIN)/python -m pytest -m slow

lint: env
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Speed and memory against plain references: see benchmarks/README.md. `make bench DEVICE=cuda` where there is one.
bench: env
	$(BIN)/python -m benchmarks.run --device $(DEVICE)
