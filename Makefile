PYTHON ?= python3
VENV := .venv
BAMBOO := $(VENV)/bin/bamboo

.PHONY: quickstart test mutants bench clean

quickstart: $(VENV)/installed  ## pretrain a small deep-narrow masked autoencoder on digits: minutes on two cores
	$(BAMBOO) fit --config configs/pretrain/quickstart.yaml

test: $(VENV)/installed  ## style, types, and every test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest

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
