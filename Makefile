PYTHON ?= .venv/bin/python

.PHONY: unit install check test docs site scores clean

install:  ## make .venv and install omni with everything needed to work on it
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[dev]'

check:  ## everything that must hold before a change is taken
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy omnicli
	$(PYTHON) -m pytest -q
	$(PYTHON) -m pytest -q -m slow

test:
	$(PYTHON) -m pytest -q

unit:  ## the rooms of pure arithmetic, in a minute
	$(PYTHON) -m pytest -q tests/utils tests/config tests/planning tests/answer tests/compress

docs:  ## regenerate the pages that are made from the code
	$(PYTHON) docs/generate.py

site:  ## build the site from docs/ into build/site; fetches nothing
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

EVAL = $(PYTHON) -m omnicli.train.pocket_eval --card omnicli/models/pocket/card.json --ask "What number" \
	--ask "What is the secret"
SAME = --preset avoc --preset avoc:avoc.scorer=identity --preset random-10:random.tokens=10240 --ask "Who speaks last"

scores:  ## the pocket model's score table with intervals, into its card (an hour on two cores)
	$(EVAL) --seconds 30 --films 60 --first 60 --preset full --ask Who > /dev/null
	$(EVAL) --seconds 600 --films 12 $(SAME) > /dev/null
	$(EVAL) --seconds 3600 --films 5 $(SAME) > /dev/null

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
