# `make demo` shows the system at work, `make test` checks it. The scripts need no Makefile: see README.md.
PYTHON ?= python3
BIN := .venv/bin
RUN := demo-$(shell date +%Y%m%d-%H%M%S)
CONFIG := configurations/DEMO.conf

.PHONY: env demo test test-slow lint

env: .venv/complete

.venv/complete: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@

demo: env
	$(BIN)/python PrepareData.py --config $(CONFIG)
	$(BIN)/python create_dtw.py --config $(CONFIG)
	$(BIN)/python run.py --config $(CONFIG) --seed 1 --name $(RUN)
	$(BIN)/python erf_conv.py --run experiments/DEMO/$(RUN)
	$(BIN)/python report.py --run experiments/DEMO/$(RUN)

test: env
	$(BIN)/python -m pytest --cov=lib --cov=model --cov-report=term

test-slow: env
	$(BIN)/python -m pytest -m slow

lint: env
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
