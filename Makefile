# Both targets create what they need: a virtual environment from pyproject.toml, renewed when that file changes.
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint samples clean

demo: $(VENV)/.installed
	$(BIN)/memaudit demo demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy -p memaudit_transformers

# The sample reports; the one on CIFAR-10 too where CIFAR10 names a folder of its arrays.
samples: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.samples $(if $(CIFAR10),--cifar10 $(CIFAR10)) $(if $(SERIES),--series $(SERIES))

$(VENV)/bin/python:
	python3 -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[dev]' -e plugins/memaudit-transformers
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo build *.egg-info
