# make paper: set up and regenerate the paper. make test: set up and run every check. make docs: build the pages.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
# A CPU wheel of torch for machines without a GPU: make TORCH_INDEX=<index of CPU wheels> paper
PIP = $(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: paper test lint unit cover docs clean
paper: $(VENV)/.ready
	$(PY) -m repro all $(ARGS)

test: lint unit

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -n 2
	$(VENV)/bin/lint-imports

# Two processes for two cores. Beside everything else run kills, bit flips and fuzzing, which wait for disks and processes
# more than they compute, and after them kernels and what takes long: not in the same process, because the former fork,
# and a fork of a process with threads may hang. Each computes in one thread, unless told otherwise: on toys a second one
# may triple the work, and takes the core that the other process is on. `make cover` is the same with coverage, of all but
# the faults.
FAULTY = $(shell grep -rl "mark\.faults" tests)
ASIDE = kernels or long
COV =
unit: export OMP_NUM_THREADS ?= 1
unit: $(VENV)/.ready
	@( $(PY) -m pytest -m faults $(FAULTY) && \
	  COVERAGE_FILE=.coverage.aside $(PY) -m pytest -m "not faults and ($(ASIDE))" $(COV) \
	) > .aside.log 2>&1 & aside=$$!; \
	COVERAGE_FILE=.coverage.main $(PY) -m pytest -m "not faults and not ($(ASIDE))" $(COV) $(PYTEST_ARGS); \
	main=$$?; wait $$aside; code=$$?; cat .aside.log; \
	test $$main = 0 && test $$code = 0

cover: $(VENV)/.ready
	rm -f .coverage .coverage.*
	$(MAKE) unit COV="--cov --cov-report="
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report --skip-covered --fail-under=90

# The pages under docs/ as a site, without a network: docs/_build/index.html.
docs: $(VENV)/.ready
	$(PIP) -c constraints.txt -e '.[docs]'
	$(PY) -m sphinx -q -W --keep-going docs docs/_build

# torch first, by its exact pin: a looser request would fetch several gigabytes of CUDA packages.
$(VENV)/.ready: constraints.txt pyproject.toml setup.py $(wildcard kernels/c/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* .aside.log paper_figures/out docs/_build build kernels/_projection.*
