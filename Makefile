PYTHON ?= python3
VENV := .venv
BAMBOO := $(VENV)/bin/bamboo
# Two processes with one thread each; a file stays in one process, for its tests share what they train.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses 2 --dist loadfile

.PHONY: quickstart test test-all mutants lint bench clean

quickstart: $(VENV)/installed  ## pretrain a small deep-narrow masked autoencoder on digits: minutes on two cores
	$(BAMBOO) fit --config configs/pretrain/quickstart.yaml

lint: $(VENV)/installed  ## style and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

test: lint  ## style, types, and every test but the slow ones
	$(PYTEST) -m "not slow"

test-all: lint  ## and the slow ones: experiments, notebooks, documentation, the wheel, killed runs
	$(PYTEST)

mutants: $(VENV)/installed  ## mistakes made in a copy of the sources, each of which a test must catch
	$(VENV)/bin/python -m tests.mutants --workers 2

bench: $(VENV)/installed  ## ratios against named peers, measured in one run
	$(VENV)/bin/python -m tests.benchmarks

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
