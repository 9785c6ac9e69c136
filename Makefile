PYTHON ?= .venv/bin/python

.PHONY: install check test docs clean

install:  ## make .venv and install omni with everything needed to work on it
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[dev]'

check:  ## everything that must hold before a change is taken
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy omnicli
	$(PYTHON) -m pytest -q

test:
	$(PYTHON) -m pytest -q

docs:  ## regenerate the pages that are made from the code
	$(PYTHON) docs/generate.py
	$(PYTHON) -m omnicli.docs

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
