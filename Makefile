# make paper: set up and regenerate the paper. make test: set up and run every check.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
# A CPU wheel of torch for machines without a GPU: make TORCH_INDEX=<index of CPU wheels> paper
PIP = $(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: paper test lint unit clean
paper: $(VENV)/.ready
	$(PY) -m repro all $(ARGS)

test: lint unit

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Kills, bit flips and fuzzing run beside everything else: they wait for disks and processes more than they compute.
unit: $(VENV)/.ready
	@$(PY) -m pytest -m faults > .faults.log 2>&1 & faults=$$!; \
	$(PY) -m pytest -m "not faults" --cov --cov-report=term:skip-covered --cov-fail-under=90 $(PYTEST_ARGS); main=$$?; \
	wait $$faults; code=$$?; cat .faults.log; test $$main = 0 && test $$code = 0

# torch first, by its exact pin: a looser request would fetch several gigabytes of CUDA packages.
$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage paper_figures/out
